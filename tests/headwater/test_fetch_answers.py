"""Whatever a server answers, a file is of one content, or it is an error.

In ranges and in one answer, with digests and without. The server is a hub in this process that breaks lines, ignores
ranges, gives others than it was asked for, and has another content from one request to the next.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headwater.fetch import fetch
from headwater.fetch.errors import FetchError
from tests.headwater.fake_stores import SHA, Answer, Break, InProcess, Refuse, Store, Trouble, Twist, hub, names_in

SIZE = 1000
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A disk would be most of the time."""
FIRST, SECOND = bytes(range(250)) * 4, bytes(reversed(range(250))) * 4


def another_total(answer: Answer) -> Answer:
    status, headers, body = answer
    return status, {name: value.replace(f"/{SIZE}", "/2000") for name, value in headers.items()}, body


def no_range(answer: Answer) -> Answer:
    status, headers, body = answer
    return status, {name: value for name, value in headers.items() if name != "Content-Range"}, body


TROUBLES = st.one_of(
    st.integers(0, SIZE).map(Break),
    st.just(Refuse(503)),
    st.just(Refuse(416)),
    st.just(Refuse(204)),
    st.just(Twist(whole=True)),
    st.just(Twist(shift=10)),
    st.sampled_from([another_total, no_range]).map(Twist),
    st.just("changed"),
    st.none(),
)


class Changing(Store):
    """Of whose file there are two contents in turn."""

    def next_trouble(self, path: str) -> Trouble | None:
        found = super().next_trouble(path)
        while found == "changed":  # type: ignore[comparison-overlap]
            self.files["model.safetensors"] = {FIRST: SECOND, SECOND: FIRST}[self.files["model.safetensors"]]
            found = super().next_trouble(path)
        return found


def mirror(store: Store, method: str, target: str, headers: Mapping[str, str]) -> Answer:
    """One that has neither digests nor, if it is so, sizes."""
    status, headed, body = hub(store, method, target, headers)
    if target.startswith("/api/"):
        size = {"size": SIZE} if "with-sizes" in store.url else {}
        siblings = [{"rfilename": name} | size for name in store.files]
        body = json.dumps({"sha": SHA, "siblings": siblings}).encode()
    return status, headed, body


@pytest.mark.usefixtures("alone", "waits", "one_thread")
@pytest.mark.parametrize("piece", [64, 4096], ids=["in-ranges", "in-one"])
@pytest.mark.parametrize("answering", [hub, mirror])
@settings(max_examples=60)
@example(troubles=[None, "changed"], sizes=True, deaf=True)
@example(troubles=[Break(500), "changed"], sizes=True, deaf=True)
@example(troubles=[Break(500), Twist(whole=True)], sizes=False, deaf=True)
@given(troubles=st.lists(TROUBLES, max_size=12), sizes=st.booleans(), deaf=st.booleans())
def test_no_answers_make_a_file_of_two_contents(
    answering, piece: int, troubles: list[Trouble], sizes: bool, deaf: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(dir=MEMORY) as folder:
        store = Changing({"model.safetensors": FIRST}, {"model.safetensors": list(troubles)}, deaf=deaf)
        transport = InProcess(store, answering)
        store.url += "/with-sizes" if sizes else ""
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1")
        patch.setattr("headwater.fetch.download.PIECE", piece)
        patch.setattr("os.fsync", lambda _: None)
        patch.setattr("headwater.fetch.make_client", transport.client)
        try:
            fetch("hf://owner/model", Path(folder) / "m")
        except FetchError:
            assert not (Path(folder) / "m").exists()
            return
        content = names_in(Path(folder) / "m")["model.safetensors"]
        assert content == FIRST or (answering is mirror and content == SECOND)
