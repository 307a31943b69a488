"""How long prompts are shared out over steps: short ones pass, and running streams keep their pace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_engine.core import engine as engine_module
from headwater_engine.core.engine import Engine
from headwater_engine.core.pace import LEAST, LONGEST_STEP, TRIAL, Pace
from headwater_engine.core.step import Step
from tests.engine.checked_worker import CheckedWorker, generate
from tests.engine.test_scheduling import drain, make_engine


def steps_until_first_token(engine: Engine, request_id: str) -> int:
    for step in range(1, 10_000):
        if any(output.id == request_id for output in engine.step()):
            return step
    raise AssertionError("no token")


def test_a_short_prompt_does_not_wait_for_the_whole_of_a_long_one() -> None:
    engine, _ = make_engine(200, max_batched_tokens=8, max_model_len=600)
    engine.add(generate("long", [1] * 500))
    engine.step()
    engine.add(generate("second long", [2] * 100))
    engine.add(generate("short", [3] * 4))
    assert steps_until_first_token(engine, "short") == 1


def test_a_prompt_that_is_nearly_all_cached_is_short() -> None:
    engine, _ = make_engine(300, max_batched_tokens=8, max_model_len=600)
    engine.add(generate("before", [1] * 80, max_tokens=1))
    drain(engine)
    engine.add(generate("long", [2] * 500))
    engine.step()
    engine.add(generate("next turn", [1] * 80 + [3] * 3))
    assert steps_until_first_token(engine, "next turn") == 1


def test_nobody_passes_who_is_less_urgent() -> None:
    engine, _ = make_engine(200, max_batched_tokens=8, max_model_len=600)
    engine.add(generate("long", [1] * 200, max_tokens=1))
    engine.step()
    engine.add(generate("later", [3] * 4, priority=1))
    engine.add(generate("sooner", [4] * 4, priority=-1))
    order = [output.id for _ in range(40) for output in engine.step()]
    assert order.index("sooner") < order.index("long") < order.index("later")


def test_short_prompts_without_end_take_half_of_a_long_ones_steps_at_most() -> None:
    engine, _ = make_engine(200, max_batched_tokens=8, max_model_len=600)
    engine.add(generate("long", [1] * 400))
    steps = 0
    while "long" in engine.scheduler and not any(output.id == "long" for output in engine.step()):
        steps += 1
        engine.add(generate(f"short {steps}", [2, steps % 90], max_tokens=1))
        engine.add(generate(f"other {steps}", [3, steps % 90], max_tokens=1))
    assert steps <= 400 / 4


def test_prompts_of_one_length_come_one_after_the_other() -> None:
    """Shared out evenly, all would be as late as the last one."""
    engine, _ = make_engine(200, max_num_seqs=8, max_batched_tokens=10, max_model_len=100)
    for n in range(6):
        engine.add(generate(str(n), [n + 1] * 20, max_tokens=1))
    order = [output.id for _ in range(12) for output in engine.step()]
    assert order == [str(n) for n in range(6)]


def test_who_waits_for_blocks_is_not_passed_for_ever() -> None:
    engine, _ = make_engine(20, max_num_seqs=8, max_batched_tokens=8, max_model_len=80)
    engine.add(generate("running", [1] * 40, max_tokens=4, ignore_eos=True))
    engine.step()
    engine.add(generate("large", [2] * 60, max_tokens=1))
    for n in range(300):
        engine.add(generate(f"short {n}", [3, n % 90], max_tokens=3, ignore_eos=True))
        if any(output.id == "large" for output in engine.step()):
            return
    raise AssertionError("the large one never ran")


class Timed(CheckedWorker):
    """Its steps take time by a clock of their own: a base, and so much for each token."""

    def __init__(self, blocks: int, cost: float = 0.0005) -> None:
        super().__init__(blocks)
        self.cost = cost
        self.now = 100.0
        self.took: list[tuple[int, float]] = []

    def launch(self, step: Step) -> None:
        super().launch(step)
        tokens = sum(span.count for span in step.spans)
        seconds = 0.010 + self.cost * tokens
        self.now += seconds
        self.took.append((tokens, seconds))


def test_running_streams_keep_their_pace_beside_a_long_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = make_engine(400, max_batched_tokens=512, max_model_len=1600, itl_objective=0.050)
    worker = Timed(400)
    engine._worker = worker
    monkeypatch.setattr(engine_module.time, "perf_counter", lambda: worker.now)
    engine.add(generate("stream", [1], max_tokens=60, ignore_eos=True))
    for _ in range(4):
        engine.step()
    engine.add(generate("long", [2] * 1500, max_tokens=1))
    steps_until_first_token(engine, "long")
    beside = [seconds for tokens, seconds in worker.took if tokens > LEAST]
    # The first step can but guess.
    assert max(beside[3:]) <= 0.050
    assert sum(beside[3:-1]) / len(beside[3:-1]) >= 0.040, "and gives away no more than it must"
    drain(engine)
    stats = engine.stats()
    assert stats.steps_off_pace <= 3
    assert stats.steps_on_pace + stats.steps_off_pace == stats.steps


@pytest.mark.parametrize("streams", [0, 1])
def test_no_step_of_a_slow_model_takes_minutes(streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 ms a token: an 8B model on two cores, whose steps of 512 tokens would take 51 seconds."""
    engine, _ = make_engine(400, max_batched_tokens=512, max_model_len=1600)
    engine._worker = worker = Timed(400, cost=0.1)
    monkeypatch.setattr(engine_module.time, "perf_counter", lambda: worker.now)
    for n in range(streams):
        engine.add(generate(str(n), [1], max_tokens=100, ignore_eos=True))
    engine.add(generate("long", [2] * 1500, max_tokens=1))
    steps = steps_until_first_token(engine, "long")
    assert max(seconds for _, seconds in worker.took) <= LONGEST_STEP
    assert steps <= 18, "and nothing is given away"


def test_a_fast_model_is_slowed_down_by_its_first_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = make_engine(400, max_batched_tokens=512, max_model_len=1600)
    engine._worker = worker = Timed(400)
    monkeypatch.setattr(engine_module.time, "perf_counter", lambda: worker.now)
    engine.add(generate("long", [2] * 1500, max_tokens=1))
    drain(engine)
    assert [tokens for tokens, _ in worker.took] == [TRIAL, 512, 512, 1500 - 1024 - TRIAL]


@given(
    base=st.floats(0.001, 0.02),
    cost=st.floats(1e-5, 1e-3),
    streams=st.lists(st.integers(0, 3), min_size=5, max_size=40),
    objective=st.floats(0.045, 0.2),
)
def test_what_it_lets_through_comes_to_the_objective(
    base: float, cost: float, streams: list[int], objective: float
) -> None:
    pace = Pace(objective, 2048)
    for count in streams:  # whatever was before
        pace.learn(count, 0 if count else 500, base * 3)
    for _ in range(200):
        pace.learn(2, pace.prompt_tokens, base + cost * pace.prompt_tokens)
    seconds = base + cost * pace.prompt_tokens
    assert seconds <= objective or pace.prompt_tokens == LEAST
    assert seconds >= 0.8 * objective or pace.prompt_tokens == 2048


def test_without_an_objective_a_step_may_be_full() -> None:
    pace = Pace(None, 512)
    for _ in range(10):
        pace.learn(3, 512, 5.0)
    assert pace.prompt_tokens == 512
    assert pace.kept == pace.missed == 0


def test_a_prompt_goes_on_where_the_objective_cannot_be_kept() -> None:
    pace = Pace(0.001, 512)
    for _ in range(10):
        pace.learn(3, pace.prompt_tokens, 1.0)
    assert pace.prompt_tokens == LEAST
    assert pace.missed == 10


def test_what_is_too_slow_without_prompts_leaves_no_room_for_them() -> None:
    pace = Pace(0.001, 512)
    pace.learn(3, 0, 1.0)
    pace.learn(3, LEAST, 0.9)
    assert pace.prompt_tokens == LEAST
