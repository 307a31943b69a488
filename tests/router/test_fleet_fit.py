"""The model's constants are found again in what it does, and the check of it says where it differs."""

import random
from dataclasses import replace
from statistics import median

import pytest

from benchmarks.fleet.fit import First, Gap, fit
from benchmarks.fleet.hardware import CPU_135M, Hardware
from benchmarks.fleet.real import apart, compare, ids_of, modelled, trace
from benchmarks.fleet.requests import Request, fresh
from benchmarks.load import Answer

TRUE = replace(CPU_135M, step=0.02, prefill=3e-4, pair=5e-8, decode=7e-4, kv=2e-6)


def measured(hardware: Hardware) -> tuple[list[First], list[Gap]]:
    """At the modelled engine, as `real` does at the one that is there."""
    rng = random.Random(1)
    firsts, gaps = [], []
    for tokens in (48, 200, 500, 900, 1400):
        [record] = modelled(hardware, [Request(0.0, fresh(rng, tokens), fresh(rng, 2))])
        assert record.ttft is not None
        firsts.append(First(tokens, record.ttft))
    for count, tokens in ((1, 32), (1, 1200), (8, 32), (16, 256)):
        records = modelled(hardware, [Request(0.0, fresh(rng, tokens), fresh(rng, 400)) for _ in range(count)])
        [per_token] = {round(each.per_token or 0.0, 4) for each in records if each is records[-1]}
        gaps.append(Gap(count, count * (tokens + 200), per_token))
    return firsts, gaps


def test_the_constants_of_an_engine_are_found_in_what_it_does() -> None:
    found = fit(replace(CPU_135M, step=1.0, prefill=1.0, pair=1.0, decode=1.0, kv=1.0), *measured(TRUE))
    assert found.step == pytest.approx(TRUE.step, rel=0.1)
    assert found.prefill == pytest.approx(TRUE.prefill, rel=0.1)
    assert found.pair == pytest.approx(TRUE.pair, rel=0.3)
    assert found.decode == pytest.approx(TRUE.decode, rel=0.2)
    assert found.kv == pytest.approx(TRUE.kv, rel=0.2)


def test_no_cost_is_below_zero_whatever_was_measured() -> None:
    found = fit(CPU_135M, [First(100, 0.5), First(1000, 0.6)], [Gap(1, 50, 0.1), Gap(8, 400, 0.05), Gap(9, 99, 0.04)])
    assert min(found.step, found.prefill, found.pair, found.decode, found.kv) >= 0.0


@pytest.mark.parametrize(("slower", "agree"), [(1.0, True), (1.15, True), (1.3, False)])
def test_the_check_fails_where_the_model_is_off_by_more_than_a_fifth(slower: float, agree: bool) -> None:
    requests = list(trace(random.Random(3), random.Random(4), 1.0))
    records = modelled(TRUE, requests)
    answers = []
    for record in records:
        assert record.ttft is not None
        assert record.duration is not None
        answer = Answer(0.0, [slower * record.ttft, slower * record.duration])
        answer.output_tokens, answer.ended = record.request.output_tokens, slower * record.duration
        answers.append(answer)
    assert compare(answers, records) is agree


def test_a_slower_machine_gets_the_trace_slower_so_that_nothing_queues_there_either() -> None:
    slow = replace(TRUE, step=4 * TRUE.step, prefill=4 * TRUE.prefill, decode=4 * TRUE.decode)
    assert apart(slow) == pytest.approx(4 * apart(TRUE))
    records = modelled(slow, list(trace(random.Random("trace"), random.Random(4), apart(slow))))
    waits = [each.ttft - slow.prefill * (each.request.prompt_tokens - each.cached) for each in records if each.ttft]
    assert median(waits) < 5 * slow.step


def test_prompts_that_begin_alike_are_ids_that_begin_alike() -> None:
    rng = random.Random(1)
    beginning = fresh(rng, 20)
    one, other = ids_of(beginning + fresh(rng, 5)), ids_of(beginning + fresh(rng, 5))
    assert one[:20] == other[:20]
    assert one[20:] != other[20:]
    assert min(one) >= 100
