"""How much clients may ask for at once, and what those get that ask for more."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from headwater.openai.completions import CompletionRequest
from headwater.openai.errors import BadRequestError, ServiceUnavailableError
from headwater.tally import Count
from headwater_engine.config import EngineSettings
from headwater_engine.core.messages import FinishReason
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.server.admission import MOST_ANSWERS, Admission
from headwater_engine.server.asking import Question
from headwater_engine.server.client import EngineClient
from headwater_engine.server.metrics import ServerMetrics
from headwater_engine.server.served_model import ServedModel
from tests.engine.fake_engine import FakeEngine, fake_engine
from tests.engine.front import CHAT, TEXT, post, serving, until


@asynccontextmanager
async def ready(folder: Path, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, FakeEngine]]:
    async with fake_engine(folder) as engine, serving(engine, **settings) as http:
        await engine.be_ready()
        await until(http, "/ready", 200)
        yield http, engine


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """All texts that were made into tokens."""
    texts: list[str] = []
    encode = ServedModel.encode

    def watched(self: ServedModel, text: str, **rest: Any) -> list[int]:
        texts.append(text)
        return encode(self, text, **rest)

    monkeypatch.setattr(ServedModel, "encode", watched)
    yield texts


@pytest.mark.parametrize(
    ("body", "param"),
    [({"prompt": ["a"] * 4000, "n": 8}, "prompt"), ({"prompt": ["a"] * 9, "n": 128}, "n")],
    ids=["prompts", "answers"],
)
async def test_more_answers_than_one_request_may_have_are_refused_before_they_are_tokenized(
    tmp_path: Path, tokenized: list[str], body: dict[str, Any], param: str
) -> None:
    async with ready(tmp_path) as (http, _):
        answer = await http.post("/v1/completions", json={**TEXT, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert str(MOST_ANSWERS) in answer.json()["error"]["message"]
    assert tokenized == []


async def test_who_could_never_be_let_in_gets_a_400_and_no_retry_after(tmp_path: Path) -> None:
    async with ready(tmp_path, max_num_seqs=2, max_waiting=1) as (http, _):
        answer = await http.post("/v1/chat/completions", json={**CHAT, "n": 4})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    assert "retry-after" not in answer.headers


async def test_while_a_thousand_answers_are_asked_for_others_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, asked_in = 0, []
    ask = EngineClient.ask

    def watched(self: EngineClient, *arguments: Any) -> None:
        asked_in.append(turns)
        ask(self, *arguments)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with ready(tmp_path) as (http, engine):
        monkeypatch.setattr(EngineClient, "ask", watched)
        answer = post(http, "/v1/completions", {**TEXT, "prompt": ["a"] * 512, "n": 2})
        other = asyncio.create_task(others())
        questions = [await engine.hear_question() for _ in range(1024)]
        other.cancel()
        for question in questions:
            await engine.answer(question, "x", FinishReason.STOP)
        assert len((await answer).json()["choices"]) == 1024
    assert len(set(asked_in)) == 1024


async def test_one_more_than_may_wait_gets_a_503_before_it_is_tokenized(tmp_path: Path, tokenized: list[str]) -> None:
    async with ready(tmp_path, max_num_seqs=2, max_waiting=1) as (http, engine):
        answers = [post(http, "/v1/completions", {**TEXT, "n": n}) for n in (2, 1)]
        questions = [await engine.hear_question() for _ in range(3)]
        for path, body in (("/v1/completions", {**TEXT, "prompt": "Refused"}), ("/v1/chat/completions", CHAT)):
            refused = await http.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
            assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
        assert tokenized == [TEXT["prompt"]] * 2
        page = (await http.get("/metrics")).text
        assert "headwater_engine_requests_turned_away_total 2.0" in page
        for question in questions:
            await engine.answer(question, "x", FinishReason.STOP)
        await asyncio.gather(*answers)
        late = post(http, "/v1/completions", {**TEXT, "n": 3})
        for _ in range(3):
            await engine.answer(await engine.hear_question(), "x", FinishReason.STOP)
        assert (await late).status_code == 200, "who has ended makes room"


def test_however_a_request_ends_its_place_is_free_again() -> None:
    admission = Admission(
        EngineSettings(model="m", max_num_seqs=2, max_waiting=0), Count(), ServerMetrics().prompt_tokens_held
    )
    request = CompletionRequest(model="m", prompt="Hi", n=2)
    for error in (None, BadRequestError("bad"), asyncio.CancelledError()):
        try:
            with admission.of(request):
                with pytest.raises(ServiceUnavailableError), admission.of(request):
                    pass
                if error is not None:
                    raise error
        except BaseException as caught:
            assert caught is error


async def test_a_priority_is_refused_unless_the_operator_allows_priorities(tmp_path: Path) -> None:
    async with ready(tmp_path) as (http, engine):
        refused = await http.post("/v1/chat/completions", json={**CHAT, "priority": -1})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "priority")
        assert "--scheduling-policy" in refused.json()["error"]["message"]
        answer = post(http, "/v1/completions", {**TEXT, "priority": 0})
        await engine.answer(await engine.hear_question(), "x", FinishReason.STOP)
        assert (await answer).status_code == 200


async def test_where_priorities_are_allowed_the_engine_hears_of_them(tmp_path: Path) -> None:
    async with ready(tmp_path, scheduling_policy="priority") as (http, engine):
        answer = post(http, "/v1/completions", {**TEXT, "priority": -3})
        question = await engine.hear_question()
        assert question.priority == -3
        await engine.answer(question, "x", FinishReason.STOP)
        assert (await answer).status_code == 200


# Tokens


def asking(*lengths: int, n: int = 1) -> Question:
    return Question(id="q", prompts=[[7] * length for length in lengths], params=SamplingParams(max_tokens=1), n=n)


def holding(monkeypatch: pytest.MonkeyPatch, most: int) -> tuple[Admission, ServerMetrics]:
    monkeypatch.setattr("headwater_engine.server.admission.memory_limit", lambda: most * 1600)
    metrics = ServerMetrics()
    return Admission(EngineSettings(model="m"), metrics.turned_away, metrics.prompt_tokens_held), metrics


def held(metrics: ServerMetrics) -> float:
    return metrics.registry.get_sample_value("headwater_engine_prompt_tokens_held") or 0.0


def test_prompts_that_wait_are_bounded_by_their_tokens_too(monkeypatch: pytest.MonkeyPatch) -> None:
    admission, metrics = holding(monkeypatch, 1000)
    with admission.holding(asking(300, 100, n=2), context=500):
        assert held(metrics) == 800
        with pytest.raises(ServiceUnavailableError, match=r"\(1000\)") as refused, admission.holding(asking(201), 500):
            pass
        assert (refused.value.code, refused.value.retry_after) == ("queue_full", 5)
        with admission.holding(asking(200), context=500):
            assert held(metrics) == 1000
    assert held(metrics) == 0
    assert metrics.registry.get_sample_value("headwater_engine_requests_turned_away_total") == 1


def test_what_could_never_be_held_is_a_400_and_a_prompt_that_fills_the_context_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admission, metrics = holding(monkeypatch, 1000)
    with pytest.raises(BadRequestError, match="1001 tokens"), admission.holding(asking(1001), context=500):
        pass
    with admission.holding(asking(2000), context=2000):
        assert held(metrics) == 2000


async def test_a_prompt_that_finds_no_room_for_its_tokens_is_turned_away_and_all_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater_engine.server.admission.memory_limit", lambda: 64 * 1600)
    async with ready(tmp_path) as (http, engine):
        first = post(http, "/v1/completions", {**TEXT, "prompt": "x" * 60})
        question = await engine.hear_question()
        second = await http.post("/v1/completions", json={**TEXT, "prompt": "x" * 10})
        assert (second.status_code, second.json()["error"]["code"]) == (503, "queue_full")
        assert second.headers["retry-after"] == "5"
        await engine.answer(question, "x", FinishReason.STOP)
        assert (await first).status_code == 200
        assert "headwater_engine_prompt_tokens_held 0.0" in (await http.get("/metrics")).text
