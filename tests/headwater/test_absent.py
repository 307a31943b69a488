"""What is said of paths that nobody answers."""

import pytest

from headwater.openai.absent import absence
from tests.router.gateway import error_of, gateway
from tests.router.upstream import upstream


@pytest.mark.parametrize("path", ["/v1/moderation", "/v1", "/", "/v1/chat/completions", "/v1/audios/x"])
def test_nothing_is_said_of_a_path_that_nobody_knows(path: str) -> None:
    assert absence(path, "engine") is None


async def test_the_router_says_what_it_does_not_do_and_forwards_what_it_does() -> None:
    async with upstream() as engine, gateway(engine) as router:
        for path, told in (
            ("/v1/moderations", "This router has no moderations."),
            ("/v1/load_lora_adapter", "`spec.adapters` of a ModelDeployment names them"),
            ("/api/generate", "did you mean /v1/completions?"),
            ("/v1/modelz", "There is nothing at /v1/modelz; did you mean /v1/models?"),
        ):
            answer = await router.post(path=path)
            assert answer.status_code == 404
            assert told in error_of(answer)["message"]
        assert (await router.post(path="/pooling")).status_code == 200
