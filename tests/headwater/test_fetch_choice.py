"""What `headwater fetch` chooses to take, where it may write, and how long it waits: without a store."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.fetch.choice import below, choose
from headwater.fetch.errors import FetchError, TransientError
from headwater.fetch.files import inside
from headwater.fetch.patience import patiently, retry_after


@given(
    st.lists(st.sampled_from(["a.safetensors", "b.bin", "c.pth", "d.gguf", "e.json", "f.h5", "g.onnx"]), unique=True)
)
def test_a_choice_keeps_one_format_and_all_that_is_not_weights(names: list[str]) -> None:
    chosen = choose(names)
    assert ("e.json" in chosen) == ("e.json" in names)
    weights = {name for name in chosen if name != "e.json"}
    assert not weights & {"f.h5", "g.onnx"}
    if "a.safetensors" in names:
        assert weights <= {"a.safetensors", "d.gguf"}
    elif set(names) & {"b.bin", "c.pth", "d.gguf"}:
        assert weights


def test_mistral_style_shards_are_kept_where_there_is_nothing_else() -> None:
    assert choose(["consolidated.safetensors", "params.json"]) == ["consolidated.safetensors", "params.json"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", {"a/b": "a/b", "ab": "ab"}), ("a", {"a/b": "b"}), ("a/b", {"a/b": "b"}), ("x", {})],
)
def test_names_below_a_path(path: str, expected: dict[str, str]) -> None:
    assert below(["a/b", "ab"], path) == expected


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


def test_patience_doubles_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)

    def busy() -> None:
        raise TransientError("busy")

    with pytest.raises(FetchError, match=r"busy \(after 8 attempts\)"):
        patiently(busy)
    assert len(waits) == 7
    assert all(0.8 * 2**n <= wait <= 1.2 * 2**n for n, wait in enumerate(waits[:6]))
