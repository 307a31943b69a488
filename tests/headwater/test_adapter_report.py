"""Which adapters vLLM has in use, as its page says."""

from pathlib import Path

import pytest

from headwater import backends
from headwater.backends.metrics import Adapters, read_load

VLLM = backends.get("vllm").metrics
RECORDED = (Path(__file__).parents[1] / "fixtures" / "vllm-0.32.0" / "metrics.txt").read_text()
"""Of a server without adapters."""


def line(running: str = "", waiting: str = "", slots: object = 4, at: object = 1.7e9) -> str:
    """As vLLM writes it."""
    labels = f'max_lora="{slots}",running_lora_adapters="{running}",waiting_lora_adapters="{waiting}"'
    return f"vllm:lora_requests_info{{{labels}}} {at}\n"


def adapters(*lines: str) -> Adapters | None:
    report = read_load(RECORDED + "".join(lines), VLLM)
    assert (report.running, report.total_blocks) == (0, 728)
    return report.adapters


def test_a_server_without_adapters_tells_nothing_of_them() -> None:
    assert read_load(RECORDED, VLLM).adapters is None
    assert read_load(RECORDED + line("a"), backends.get("sglang").metrics).adapters is None


def test_those_with_running_requests_come_after_those_that_only_wait() -> None:
    assert adapters(line("sql, chat", "sql,legal", slots=2)) == Adapters(2, ("legal", "chat", "sql"))
    assert adapters(line()) == Adapters(4, ())


def test_of_many_lines_the_newest_counts_wherever_it_is() -> None:
    older = [line(f"old-{number}", at=1.7e9 + number) for number in range(3000)]
    newest = line("new", at="1.789828498802105e+09")
    for lines in ([newest, *older], [*older, newest], [*older[:1500], newest, *older[1500:]]):
        assert adapters(*lines) == Adapters(4, ("new",))


@pytest.mark.parametrize("slots", ["", "0", "-1", "many", "²", "1" * 5000])
def test_without_a_number_of_slots_it_is_no_report(slots: str) -> None:
    assert adapters(line("a", slots=slots)) is None


def test_the_newest_line_is_no_older_one_where_it_is_too_long() -> None:
    assert adapters(line("a"), line("b," * 4096, at=1.8e9)) is None


def test_names_and_numbers_have_bounds() -> None:
    many = adapters(line(",".join(f"{number:x}" for number in range(1000)), slots=99999))
    assert many is not None
    assert many.slots == len(many.names) == 256
    assert many.names[-1] == "0"
    assert adapters(line(f" ,,{'n' * 300},a", "\\n")) == Adapters(4, ("a",))
    assert adapters(line('a\\"} 9,b,日本')) == Adapters(4, ("日本", "b", 'a"} 9'))


@pytest.mark.parametrize("at", ["NaN", "+Inf"])
def test_a_moment_that_is_none_is_the_oldest(at: str) -> None:
    assert adapters(line("odd", at=at), line("a", at=-5.0)) == Adapters(4, ("a",))
