"""What `headwater fetch` chooses to take, where it may write, and how long it waits: without a store."""

import asyncio
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.fetch.choice import Wish, below, choose
from headwater.fetch.errors import FetchError, TransientError
from headwater.fetch.manifest import MANIFEST
from headwater.fetch.partial import inside
from headwater.fetch.patience import MOST, Lines, at_once, retry_after


@given(
    st.lists(
        st.sampled_from(["a.safetensors", "model.bin", "c.pth", "d.gguf", "e.json", "f.h5", "g.onnx"]), unique=True
    )
)
def test_a_choice_keeps_one_format_and_all_that_is_not_weights(names: list[str]) -> None:
    chosen = choose(names)
    assert ("e.json" in chosen) == ("e.json" in names)
    best = next((name for name in ("a.safetensors", "model.bin", "d.gguf", "c.pth") if name in names), None)
    assert {name for name in chosen if name != "e.json"} == ({best} if best else set())


def table() -> list[tuple[list[str], list[str]]]:
    """What docs/weights.md says: names in the source, and those that are taken."""
    text = (Path(__file__).parents[2] / "docs" / "weights.md").read_text().partition("### What is taken")[2]
    rows = [line.split("|") for line in text.partition("\n### ")[0].splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([^`]+)`", row[1]), re.findall(r"`([^`]+)`", row[2])) for row in rows]


@pytest.mark.parametrize(("names", "taken"), table(), ids=lambda names: names[0] if names else "nothing")
def test_what_is_taken_is_what_the_docs_say(names: list[str], taken: list[str]) -> None:
    assert sorted(choose(names)) == sorted(taken)
    assert choose(taken) == taken, "it is the same when it was fetched before"


def test_the_docs_have_a_row_for_each_rule() -> None:
    assert len(table()) >= 10


def test_somebody_may_wish_for_something_else() -> None:
    names = ["config.json", "model.safetensors", "model-Q8_0.gguf", "a/b/c.txt", MANIFEST]
    assert Wish(include=("*.gguf",)).choose(names) == ["model-Q8_0.gguf"]
    assert Wish(exclude=("a/*", "*.gguf")).choose(names) == ["config.json", "model.safetensors"]
    assert Wish(include=("*",), exclude=("*.json",)).choose(names) == names[1:4], "never the manifest of another fetch"


def test_mistral_style_shards_are_kept_where_there_is_nothing_else() -> None:
    assert choose(["consolidated.safetensors", "params.json"]) == ["consolidated.safetensors", "params.json"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", {"a/b": "a/b", "ab": "ab"}), ("a", {"a/b": "b"}), ("a/b", {"a/b": "b"}), ("x", {}), ("ab", {"ab": "ab"})],
)
def test_names_below_a_path(path: str, expected: dict[str, str]) -> None:
    assert below(["a", "a/b", "ab"] if path == "a" else ["a/b", "ab"], path) == expected


@given(st.text(alphabet="a./\\", max_size=12))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    folder = Path("/some/folder")
    try:
        target = inside(folder, name)
    except FetchError:
        return
    assert target.is_relative_to(folder) and ".." not in target.parts


@pytest.mark.parametrize(
    ("value", "expected"),
    [("5", 5.0), (None, None), ("", None), ("soon", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0)],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float | None) -> None:
    assert retry_after(value) == expected


async def busy() -> None:
    raise TransientError("busy")


async def test_patience_doubles_and_ends(waits: list[float]) -> None:
    with pytest.raises(FetchError, match=r"busy \(after 8 attempts\)"):
        await Lines().patiently(busy)
    assert len(waits) == 7
    assert all(2**n / 2 <= wait <= 2**n for n, wait in enumerate(waits[:6]))


async def test_a_busy_server_is_asked_less_and_less(waits: list[float]) -> None:
    """Sixteen files that are refused together are one refusal, and then one asks for all."""
    lines, asked = Lines(), 0

    async def refused() -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        raise TransientError("busy", 30.0)

    with pytest.raises(FetchError, match=r"busy \(after 8 attempts\)"):
        await at_once(lines.patiently(refused) for _ in range(16))
    assert len(waits) == 7 and min(waits) >= 30
    assert asked <= 8 + 4 + 2 + 8, "halved each time"


async def test_a_server_that_answers_is_asked_more_and_more() -> None:
    lines, running, most = Lines(), 0, 0

    async def answered() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await at_once(lines.patiently(answered) for _ in range(8))
    assert most == 8
    await at_once(lines.patiently(answered) for _ in range(300))
    assert most == MOST


async def test_progress_forgives_the_failures_before(waits: list[float]) -> None:
    lines, broken = Lines(), 0

    async def breaks() -> None:
        nonlocal broken
        broken += 1
        if broken <= 30:
            lines.progressed()
            raise TransientError("the line broke")

    await lines.patiently(breaks)
    assert len(waits) == 30 and max(waits) < 1.3


async def test_the_first_that_fails_ends_the_others() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("it")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise FetchError("no")

    with pytest.raises(FetchError, match="no"):
        await at_once([forever(), fails()])
    assert ended == ["it"]


async def test_a_server_whose_name_nobody_knows_is_given_up_in_seconds(waits: list[float]) -> None:
    async def call() -> None:
        raise TransientError("hf://a/b cannot be reached", nameless=True)

    with pytest.raises(FetchError, match=r"hf://a/b cannot be reached \(after 4 attempts\)"):
        await Lines().patiently(call)
    assert len(waits) == 3
    assert sum(waits) < 10
