"""`headwater bench`: what it asks, what it counts, and what it says of servers that do not answer."""

import json

import httpx
import pytest

from headwater.cli import bench, main
from headwater.cli.load import Answer, Shape, Summary, prompts, run

SHAPE = Shape(requests=8, concurrency=3, prompt_words=20, shared=0.5, max_tokens=4)


def test_a_quarter_of_the_requests_each_begins_alike_and_the_same_seed_asks_the_same() -> None:
    made = prompts(SHAPE, seed=1)
    assert made == prompts(SHAPE, seed=1) != prompts(SHAPE, seed=2)
    assert len({messages[0]["content"] for messages in made}) == 4
    assert len({messages[1]["content"] for messages in made}) == 8
    assert {len(messages[0]["content"].split()) for messages in made} == {10}
    alone = prompts(Shape(2, 1, 5, 0.0, 4), seed=1)
    assert [[each["role"] for each in messages] for messages in alone] == [["user"], ["user"]]


def test_a_summary_counts_what_was_whole() -> None:
    fast = Answer(0.0, [0.1, 0.2, 0.3], prompt_tokens=10, cached_tokens=5, output_tokens=3, ended=0.3)
    slow = Answer(0.0, [2.0, 2.5, 3.0], prompt_tokens=10, cached_tokens=0, output_tokens=3, ended=4.0)
    lost = Answer(0.0, [], ended=1.0, error="503")
    summary = Summary.of("m", 2, [fast, slow, lost], ttft_objective=1000, tpot_objective=200)
    assert (summary.requests, summary.failed, summary.seconds) == (3, 1, 4.0)
    assert (summary.model, summary.concurrency, summary.output_tokens_per_s) == ("m", 2, 1.5)
    assert (summary.prompt_tokens, summary.output_tokens) == (10, 3), "of a whole answer"
    assert summary.cached_share == 0.25
    assert summary.goodput == 0.25
    assert (round(summary.ttft_p50), round(summary.ttft_p99), round(summary.tpot_p99)) == (100, 2000, 500)


def test_a_summary_of_failures_alone_is_one() -> None:
    assert Summary.of("m", 1, [Answer(0.0, ended=1.0, error="x")], 1, 1).output_tokens_per_s == 0


def answering(request: httpx.Request) -> httpx.Response:
    asked = json.loads(request.content)
    if asked["messages"][0]["content"] == "refuse":
        return httpx.Response(503, json={"error": {"message": "full"}})
    chunks: list[dict[str, object]] = [{"choices": [{"delta": {"content": word}}]} for word in ("a", "", "b")]
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}
    events = [*chunks, {"choices": [], "usage": usage}]
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return httpx.Response(200, text=text)


async def test_every_request_is_answered_or_told_why_not() -> None:
    seen: list[Answer] = []
    async with httpx.AsyncClient(transport=httpx.MockTransport(answering), base_url="http://e/v1") as client:
        answers = await run(client, "m", SHAPE, 1, seen.append)
    assert len(answers) == len(seen) == SHAPE.requests
    assert {(len(each.arrivals), each.output_tokens, each.error) for each in answers} == {(2, 2, "")}


async def test_a_refusal_is_an_answer_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.cli.load.prompts", lambda shape, seed: [[{"role": "user", "content": "refuse"}]])
    async with httpx.AsyncClient(transport=httpx.MockTransport(answering), base_url="http://e/v1") as client:
        (answer,) = await run(client, "m", SHAPE, 1, lambda _: None)
    assert answer.error.startswith("503: ") and "full" in answer.error


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("bench", 2, "URL is missing"),
        ("bench 127.0.0.1:8080/v1", 2, "did you mean http://127.0.0.1:8080/v1?"),
        ("bench http://h/v1 --requests 0", 2, "--requests must be at least 1, found 0"),
        ("bench http://h/v1 --shared 2", 2, "--shared must be from 0 to 1, found 2"),
        ("bench http://127.0.0.1:9/v1", 1, "http://127.0.0.1:9/v1 cannot be reached"),
    ],
)
def test_what_cannot_be_measured_is_said(line: str, status: int, message: str, capsys) -> None:
    try:
        ended = main(line.split())
    except SystemExit as end:
        ended = int(end.code or 0)
    said = capsys.readouterr()
    assert (ended, message in said.err, said.err.count("\n")) == (status, True, 1)


def test_a_plot_has_no_more_bars_than_a_line_has_room_for() -> None:
    assert bench.plot([]) == ""
    assert bench.plot([0.0, 1.0]) == "▁█"
    assert len(bench.plot([float(n) for n in range(1000)])) <= 60
