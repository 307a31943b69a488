"""The prefix policy: to the holder while that is quickest, to others when it is not."""

import random
from collections import Counter

import pytest

from headwater.events import BlockStored
from headwater.prefix import token_chain
from headwater_router.admission.ceiling import Report
from headwater_router.index import PrefixIndex
from headwater_router.index.folds import KEY_TOKENS
from headwater_router.index.stored import token_root
from headwater_router.outcome import Outcome
from headwater_router.picker import make
from headwater_router.picker.base import Backlog, Decision, Label, Others, Picker, Prompt, Target
from headwater_router.picker.prefix import PrefixPicker
from tests.router.indexing import apply


def targets(count: int) -> list[Target]:
    return [Target(f"pod-{number}") for number in range(count)]


def prefix_picker(seed: int = 0, index: PrefixIndex | None = None) -> Picker:
    return make("prefix", index, random.Random(seed))


def prompt(chain: list[int], tokens: int | None = None) -> Prompt:
    return Prompt("m", chain, tokens if tokens is not None else 128 * len(chain) + 50)


def answer(picker: Picker, decision: Decision, now: float, seconds: float = 0.1) -> None:
    picker.first_token(decision, now + seconds)
    picker.finished(decision, now + seconds, Outcome.ANSWERED)


def teach(picker: Picker, target: Target, seconds_per_token: float, now: float = 0.0) -> float:
    """Several answers of this speed; gives the time after them."""
    for number in range(30):
        tokens = 500 + 100 * (number % 5)
        decision = picker.pick(Prompt("m", [], tokens), [target], now)
        answer(picker, decision, now, seconds_per_token * tokens)
        now += 10
    return now


def test_a_conversation_returns_to_its_holder_every_time() -> None:
    picker, pods = prefix_picker(), targets(4)
    now = 0.0
    for conversation in range(20):
        homes = set()
        for turn in range(1, 10):
            chain = [1000 * conversation + block for block in range(2 * turn)]
            decision = picker.pick(prompt(chain), pods, now)
            answer(picker, decision, now)
            homes.add(decision.target.id)
            now += 1
        assert len(homes) == 1


def test_prompts_that_are_new_go_anywhere_among_the_idle() -> None:
    picker, pods = prefix_picker(), targets(4)
    chosen: Counter[str] = Counter()
    for number in range(400):
        decision = picker.pick(prompt([number]), pods, 0.0)
        chosen[decision.target.id] += 1
        picker.finished(decision, 0.0, Outcome.ANSWERED)
    assert all(60 < chosen[pod.id] < 140 for pod in pods)


def test_a_burst_with_one_prefix_spreads_over_several_pods_but_not_all() -> None:
    picker, pods = prefix_picker(), targets(16)
    system = list(range(32))
    answer(picker, picker.pick(prompt(system), pods, 0.0), 0.0, seconds=1.3)
    for number in range(40):
        picker.pick(prompt([*system, 1000 + number], 32 * 128 + 228), pods, 10.0)
    used = [pod.load.in_flight for pod in pods if pod.load.in_flight]
    assert 1 < len(used) < len(pods)


def test_a_pod_to_which_a_prefix_spilled_is_a_holder_from_then_on() -> None:
    picker, (first, second) = prefix_picker(), targets(2)
    chain = list(range(10))
    answer(picker, picker.pick(prompt(chain), [first], 0.0), 0.0)
    busy = [picker.pick(Prompt("m", [], 3000), [first], 1.0) for _ in range(3)]
    spilled = picker.pick(prompt(chain), [first, second], 1.0)
    assert spilled.target is second
    answer(picker, spilled, 1.0)
    again = picker.pick(prompt(chain), [first, second], 2.0)
    assert again.target is second
    assert again.predicted_cached_tokens == 1280
    for decision in [*busy, again]:
        picker.finished(decision, 3.0, Outcome.FAILED)


def test_a_pod_that_is_forgotten_holds_nothing_and_late_answers_change_nothing() -> None:
    index = PrefixIndex()
    picker, (pod,) = prefix_picker(index=index), targets(1)
    late = picker.pick(prompt([1, 2, 3]), [pod], 0.0)
    answer(picker, picker.pick(prompt([1, 2, 3]), [pod], 0.0), 0.0)
    picker.forget(pod.id)
    answer(picker, late, 0.0)
    assert index.size().endpoints == 0
    assert picker.pick(prompt([1, 2, 3]), [pod], 1.0).predicted_cached_tokens == 0


def test_a_request_that_failed_before_its_first_byte_leaves_no_trace() -> None:
    picker, (pod,) = prefix_picker(), targets(1)
    picker.finished(picker.pick(prompt([1, 2]), [pod], 0.0), 0.1, Outcome.FAILED)
    assert picker.pick(prompt([1, 2]), [pod], 0.2).predicted_cached_tokens == 0


def test_an_answer_that_breaks_off_was_computed_all_the_same() -> None:
    picker, (pod,) = prefix_picker(), targets(1)
    decision = picker.pick(prompt([1, 2]), [pod], 0.0)
    picker.first_token(decision, 0.1)
    picker.finished(decision, 0.2, Outcome.FAILED)
    assert picker.pick(prompt([1, 2]), [pod], 1e6).predicted_cached_tokens == 256


def test_a_dispatch_without_an_answer_counts_for_a_while_only() -> None:
    picker, (pod,) = prefix_picker(index=PrefixIndex(unconfirmed_ttl=5.0)), targets(1)
    picker.pick(prompt([1, 2]), [pod], 0.0)
    assert picker.pick(prompt([1, 2, 3]), [pod], 4.0).predicted_cached_tokens == 256
    assert picker.pick(prompt([1, 2, 3]), [pod], 9.5).predicted_cached_tokens == 0


def test_nothing_is_predicted_before_the_first_answer() -> None:
    picker, (pod,) = prefix_picker(), targets(1)
    first = picker.pick(prompt([1]), [pod], 0.0)
    assert first.predicted_ttft is None
    assert pod.load.prefill_rate == 0
    answer(picker, first, 0.0)
    assert pod.load.prefill_rate > 0
    assert picker.pick(prompt([2]), [pod], 1.0).predicted_ttft is not None


def test_the_rate_is_learned_from_first_bytes() -> None:
    picker, (pod,) = prefix_picker(), targets(1)
    now = teach(picker, pod, 1 / 800)
    assert pod.load.prefill_rate == pytest.approx(800, rel=0.1)
    decision = picker.pick(Prompt("m", [], 1600), [pod], now)
    assert decision.predicted_ttft == pytest.approx(2.0, rel=0.1)


def test_waiting_in_the_queue_is_not_taken_for_slowness() -> None:
    picker, (pod,) = prefix_picker(), targets(1)
    now = teach(picker, pod, 1 / 1000)
    burst = [picker.pick(Prompt("m", [], 1000), [pod], now) for _ in range(20)]
    for number, decision in enumerate(burst):
        picker.first_token(decision, now + 1 + number)
    assert pod.load.prefill_rate == pytest.approx(1000, rel=0.2)


def test_engines_that_answer_all_in_the_same_time_share_the_load() -> None:
    """However many prompts they compute at once: the busy one must not seem the quicker one for it."""
    picker, pods = prefix_picker(), targets(4)
    chosen: Counter[str] = Counter()
    in_flight: list[Decision] = []
    for number in range(4000):
        in_flight.append(picker.pick(prompt([number], 400), pods, number * 0.002))
        chosen[in_flight[-1].target.id] += 1
        if len(in_flight) > 64:
            answer(picker, in_flight.pop(0), number * 0.002, seconds=0.0)
    assert all(600 < chosen[pod.id] < 1400 for pod in pods)


def test_an_answer_that_is_not_streamed_teaches_no_rate_and_leaves_the_queue_in_time() -> None:
    picker, (pod,) = prefix_picker(), targets(1)
    whole = picker.pick(Prompt("m", [1], 1000, streamed=False), [pod], 0.0)
    assert pod.load.prefill_tokens == 1000
    picker.pick(Prompt("m", [], 100), [pod], 60.0)
    assert pod.load.prefill_tokens == 100
    picker.first_token(whole, 90.0)
    picker.finished(whole, 90.0, Outcome.ANSWERED)
    assert pod.load.prefill_rate == 0
    assert pod.load.in_flight == 1
    assert picker.pick(Prompt("m", [1, 2], 1000), [pod], 1e6).predicted_cached_tokens == 128


def test_a_pod_without_answers_is_taken_to_be_like_the_others() -> None:
    picker, (known, new) = prefix_picker(), targets(2)
    now = teach(picker, known, 1 / 50_000)
    chosen = Counter()
    for number in range(100):
        decision = picker.pick(prompt([number], 2000), [known, new], now)
        chosen[decision.target.id] += 1
        picker.finished(decision, now, Outcome.FAILED)
    assert 25 < chosen[new.id] < 75


def test_a_pod_that_seemed_slow_is_tried_again_after_a_while() -> None:
    picker, (quick, slow) = prefix_picker(), targets(2)
    now = teach(picker, quick, 1 / 10_000, teach(picker, quick, 1 / 10_000))
    now = teach(picker, slow, 1 / 100, now - 290)

    def slow_among(count: int, now: float) -> int:
        decisions = [picker.pick(Prompt("m", [], 500), [quick, slow], now) for _ in range(count)]
        for decision in decisions:
            picker.finished(decision, now, Outcome.FAILED)
        return sum(decision.target is slow for decision in decisions)

    assert slow_among(20, now + 1) == 0
    now = teach(picker, quick, 1 / 10_000, now + 60)
    assert slow_among(20, now + 1) > 0


def test_stale_gauges_do_not_herd_a_burst() -> None:
    picker, pods = prefix_picker(), targets(4)
    for pod, waiting in zip(pods, (0, 4, 4, 4), strict=True):
        pod.load.report(Report(0, waiting))
    for number in range(100):
        picker.pick(prompt([number], 256), pods, 0.0)
    # The idle one makes up for the four that wait elsewhere, and the rest is shared.
    assert sorted(pod.load.in_flight for pod in pods)[-1] <= 32


def test_gauges_that_show_our_own_requests_count_them_once() -> None:
    picker, pods = prefix_picker(), targets(2)
    decisions = [picker.pick(prompt([number], 500), pods, 0.0) for number in range(20)]
    pods[0].load.report(Report(2, 8))
    for number in range(20):
        decisions.append(picker.pick(prompt([100 + number], 500), pods, 1e-3))
    assert [pod.load.in_flight for pod in pods] == [20, 20]


def stored(ids: list[int]) -> BlockStored:
    blocks = len(ids) // 16
    return BlockStored([*range(blocks)], None, ids, 16, None, "GPU", None)


@pytest.mark.parametrize("by_events", [False, True])
def test_an_engine_that_keeps_no_prefixes_loses_its_credit_and_can_win_it_back(by_events: bool) -> None:
    """Whatever its KV events say that it holds."""
    index = PrefixIndex()
    picker, (pod,) = prefix_picker(index=index), targets(1)
    ids = list(range(512))
    asked = prompt([1, 2, 3, 4])
    if by_events:
        apply(index, pod.id, 0, stored(ids))
        asked = Prompt("m", [], 513, token_chain=token_chain(token_root(), ids, KEY_TOKENS))

    def predicted(reported: int) -> int:
        decision = picker.pick(asked, [pod], 0.0)
        picker.first_token(decision, 0.1)
        picker.finished(decision, 0.2, Outcome.ANSWERED, cached_tokens=reported)
        return decision.predicted_cached_tokens

    assert [predicted(0) for _ in range(60)][-1] < 64
    assert [predicted(512) for _ in range(60)][-1] > 500


def test_a_decision_is_exact_only_where_events_confirm_what_it_rests_on() -> None:
    index = PrefixIndex()
    picker, (followed, other) = prefix_picker(index=index), targets(2)
    ids = list(range(160))
    known = Prompt("m", [1], 160, token_chain=token_chain(token_root(), ids, KEY_TOKENS))
    text = Prompt("m", [1], 160)
    apply(index, followed.id, 0, stored(ids[:96]))
    exact = picker.pick(known, [followed, other], 0.0)
    assert (exact.target, exact.label, exact.predicted_cached_tokens) == (followed, Label.EXACT, 96)
    # What was just dispatched should come, but no event has said so yet.
    expected = picker.pick(known, [followed], 0.0)
    assert (expected.label, expected.predicted_cached_tokens) == (Label.APPROXIMATE, 159)
    assert picker.pick(known, [other], 0.0).label is Label.APPROXIMATE
    assert picker.pick(text, [followed], 0.0).label is Label.APPROXIMATE
    assert picker.pick(Prompt("m", [], 5), [followed], 0.0).label is Label.FALLBACK


def test_engines_reuse_whole_blocks_of_their_own_size() -> None:
    index = PrefixIndex()
    picker, (pod,) = prefix_picker(index=index), targets(1)
    pod.load.block_size = 128
    ids = list(range(256))
    apply(index, pod.id, 0, BlockStored([1, 2], None, ids, 128, None, "GPU", None))
    chain = token_chain(token_root(), ids[:200], KEY_TOKENS)
    assert picker.pick(Prompt("m", [], 200, token_chain=chain), [pod], 0.0).predicted_cached_tokens == 128
    # The last token is computed, and with it all of its block, though every token of the prompt is held.
    whole = token_chain(token_root(), ids, KEY_TOKENS)
    assert picker.pick(Prompt("m", [], 256, token_chain=whole), [pod], 0.0).predicted_cached_tokens == 128


def test_a_long_prompt_is_not_sent_behind_another_one_whose_answer_would_wait_for_it() -> None:
    """The other is no answer yet, but will be by the time that this one is computed."""
    picker, pods = prefix_picker(), targets(2)
    now = max(teach(picker, pod, 1e-4) for pod in pods) + 1000
    for _ in range(2):
        picker.pick(Prompt("m", [], 60_000), pods[:1], now)
    for _ in range(3):
        answering = picker.pick(Prompt("m", [], 100), pods[1:], now)
        picker.first_token(answering, now + 0.01)
    document = Prompt("m", [], 60_000)
    assert picker.pick(document, pods, now + 18.0).target is pods[1]


def test_the_head_of_a_queue_is_what_was_sent_first_by_whichever_router() -> None:
    """So what of it should be computed by now is not waited for."""
    picker, [pod] = prefix_picker(), targets(1)
    now = teach(picker, pod, 1e-4) + 1000
    pod.load.others = Others(1, 1, 9_000, 9_000, Backlog(9_000.0, 9_000.0, now))
    early = picker.pick(Prompt("m", [], 100), [pod], now + 0.1)
    late = picker.pick(Prompt("m", [], 100), [pod], now + 0.8)
    assert early.predicted_ttft is not None
    assert late.predicted_ttft is not None
    assert late.predicted_ttft == pytest.approx(early.predicted_ttft - 0.7, abs=0.1)


def test_prompts_that_other_routers_had_computed_meanwhile_do_not_teach_that_steps_are_slow() -> None:
    def learned(told: bool) -> float:
        picker, [pod] = prefix_picker(), targets(1)
        assert isinstance(picker, PrefixPicker)
        rng, now, computed = random.Random(1), 0.0, 0.0
        for _ in range(300):
            pod.load.others = Others(0, 0, 0, 0, Backlog(computed=computed))
            tokens, foreign, out = rng.randrange(100, 2000), rng.randrange(0, 20_000), rng.randrange(20, 200)
            decision = picker.pick(Prompt("m", [], tokens), [pod], now)
            picker.first_token(decision, now := now + 0.005 + 25e-6 * tokens)
            if told:
                computed += foreign
                pod.load.others = Others(0, 0, 0, 0, Backlog(computed=computed))
            now += 0.005 * (out - 1) + 25e-6 * foreign
            picker.finished(decision, now, Outcome.ANSWERED, 0, out)
        speed = picker.speed(pod.id)
        assert speed is not None
        return speed.seconds_per_step

    assert learned(True) == pytest.approx(0.005, rel=0.1)
    assert learned(False) > 0.006


def test_that_the_count_of_others_begins_anew_teaches_nothing() -> None:
    """What they have had computed is counted since the way to them is open; it may break while answers run."""
    picker, pod = prefix_picker(), Target("pod")
    now, computed = 0.0, 0.0

    def others() -> None:
        pod.load.others = Others(1, 0, 0, 400, Backlog(computed=computed))

    def answer_eight() -> float:
        """Gives the seconds that were predicted from one token to the next."""
        nonlocal now
        decisions = [picker.pick(prompt([], 400), [pod], now) for _ in range(8)]
        for decision in decisions:
            picker.first_token(decision, now + 0.1)
        now += 1.1
        others()
        for decision in decisions:
            picker.finished(decision, now, Outcome.ANSWERED, output_tokens=50)
        return decisions[0].predicted_per_token or 0.0

    for number in range(44):
        computed = 0.0 if number == 40 else computed + 100_000
        predicted = answer_eight()
    assert predicted < 0.02, "all of it was a second for 50 tokens"
