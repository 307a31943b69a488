"""`headwater serve --device cuda` answers: with all processes, over HTTP."""

import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

from tests.engine.front import free_port

pytestmark = pytest.mark.xdist_group("serving")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    port = free_port()
    command = [sys.executable, "-m", "headwater", "serve", "random:tiny", "--device", "cuda", "--port", str(port)]
    log = tmp_path_factory.mktemp("serving") / "log"
    with log.open("w") as target:
        process = subprocess.Popen(command, stdout=target, stderr=target)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            try:
                if http.get("/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        yield http
    process.terminate()
    assert process.wait(60) == 0, log.read_text()[-4000:]
    assert "cuda-triton-bfloat16" in log.read_text()


def test_it_answers_on_the_gpu(client: httpx.Client) -> None:
    body = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    answers = [client.post("/v1/completions", json=body).json() for _ in range(2)]
    assert answers[0]["usage"]["completion_tokens"] == 20
    assert answers[0]["choices"] == answers[1]["choices"]


def test_sampled_answers_and_their_log_probabilities(client: httpx.Client) -> None:
    body = {
        "model": "tiny",
        "prompt": "Once upon a time",
        "max_tokens": 8,
        "seed": 7,
        "temperature": 0.8,
        "top_p": 0.9,
        "frequency_penalty": 0.5,
        "logit_bias": {"65": 3},
        "logprobs": 2,
        "ignore_eos": True,
    }
    replies = [client.post("/v1/completions", json=body).json() for _ in range(2)]
    assert all("choices" in reply for reply in replies), replies
    one, other = (reply["choices"][0] for reply in replies)
    assert one["text"] == other["text"]
    assert len(one["logprobs"]["token_logprobs"]) == 8
