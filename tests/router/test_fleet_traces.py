"""Traffic is read from files in the shapes of Mooncake and ShareGPT; rules that follow engines know what these hold."""

import random
from functools import partial
from pathlib import Path

import pytest

from benchmarks.fleet.__main__ import policies
from benchmarks.fleet.memory import BYTES
from benchmarks.fleet.requests import Request
from benchmarks.fleet.simulation import Run, Workload, simulate
from benchmarks.fleet.traces import Shape, requests_of

TRACES = Path(__file__).parents[1] / "fixtures" / "traces"
MOONCAKE, SHAREGPT = TRACES / "mooncake.jsonl", TRACES / "sharegpt.json"


def read(path: Path, shape: Shape) -> list[Request]:
    return list(requests_of(path, shape, random.Random(1), per_second=2.0))


def run(path: Path, shape: Shape, policy: str) -> Run:
    workload = Workload("trace", lambda rng: iter(read(path, shape)), speeds=(1.0,) * 2)
    return simulate(workload, partial(policies, policy))


def test_lines_in_mooncakes_shape_share_the_tokens_whose_ids_they_share(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        '{"timestamp": 27482, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 2366]}\n'
        '{"timestamp": 0, "input_length": 1024, "output_length": 3, "hash_ids": [46, 47]}\n'
    )
    first, second = read(trace, Shape.MOONCAKE)
    assert (first.at, first.prompt_tokens, first.output_tokens) == (0.0, 1024, 3)
    assert (second.at, second.prompt_tokens, second.output_tokens) == (27.482, 1100, 52)
    assert second.prompt.startswith(first.prompt)


def test_conversations_in_sharegpts_shape_go_on_with_what_was_said(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    trace.write_text(
        '[{"id": "a", "conversations": [{"from": "human", "value": "Hi!"}, {"from": "gpt", "value": "Hello."}, '
        '{"from": "human", "value": "And?"}, {"from": "gpt", "value": "é"}, {"from": "human", "value": "?"}]}, '
        '{"id": "b", "conversations": []}]'
    )
    [first] = read(trace, Shape.SHAREGPT)
    assert (first.prompt, first.answer) == (b"Hi! ", b"Hello.  ")
    assert first.then is not None
    second = first.then(100.0)
    assert second is not None
    assert (second.prompt, second.answer) == (b"Hi! Hello.  And?", "é  ".encode())
    assert second.at > 100.0
    assert second.then is not None
    assert second.then(200.0) is None
    assert not len(second.prompt) % BYTES


@pytest.mark.parametrize(
    "text", ["[]", "{}", "nonsense", '{"timestamp": 0, "input_length": 9000, "output_length": 3, "hash_ids": [1]}']
)
def test_what_is_no_trace_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    trace = tmp_path / "trace"
    trace.write_text(text)
    with pytest.raises(ValueError, match="trace"):
        read(trace, Shape.MOONCAKE)


@pytest.mark.parametrize(("path", "shape"), [(MOONCAKE, Shape.MOONCAKE), (SHAREGPT, Shape.SHAREGPT)])
@pytest.mark.parametrize("policy", ["prefix", "llm-d precise", "llm-d affinity", "llm-d affinity, tuned"])
def test_a_trace_is_played_to_its_end(path: Path, shape: Shape, policy: str) -> None:
    result = run(path, shape, policy)
    assert len(result.records) >= len(read(path, shape))
    assert all(record.duration is not None for record in result.records)
    assert sum(record.cached for record in result.records) > 0


def test_who_follows_engines_expects_just_what_they_hold() -> None:
    """Nothing is under way when the next one comes, and nothing was sent lately."""

    def apart(rng: random.Random) -> list[Request]:
        requests = read(MOONCAKE, Shape.MOONCAKE)[:20]
        for place, request in enumerate(requests):
            request.at = 30.0 * place
        return requests

    workload = Workload("apart", lambda rng: iter(apart(rng)), speeds=(1.0,) * 2)
    made = policies("llm-d precise", random.Random(1))
    expected = []
    peer = made.of(None)
    pick = peer.pick

    def noted(*args: object) -> object:
        decision = pick(*args)  # type: ignore[arg-type]
        expected.append(decision.predicted_cached_tokens)
        return decision

    peer.pick = noted  # type: ignore[method-assign,assignment]
    result = simulate(workload, lambda rng: made)
    assert expected == [record.cached for record in result.records]
    assert any(expected)
