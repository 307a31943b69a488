"""What becomes of one rank is the end of all, and each says which rank it was. The ranks here have no model.

How soon: test_group_clock.py.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import pytest

from headwater_engine.distributed import group as module
from headwater_engine.distributed import line
from headwater_engine.distributed.group import Activity, Group, Peer
from headwater_engine.distributed.line import LONGEST, Beat, Cause, End, Failed, Line, decode, encode

PATIENCE: Final = 120  # seconds: a guard
_RANK = """
import sys, threading, time
from headwater_engine.distributed.lifeline import Lifeline
lifeline = Lifeline(int(sys.argv[1]))
lifeline.beat()
lifeline.start()
match sys.argv[2]:
    case "loads":
        pass
    case "fails":
        lifeline.failed("There is no model here.")
        sys.exit(1)
    case "serves":
        lifeline.loaded()
threading.Event().wait()
"""


@asynccontextmanager
async def ranks(*behaviours: str) -> AsyncIterator[Group]:
    group = Group(alone=False)
    for rank, behaviour in enumerate(behaviours):
        command = [sys.executable, "-c", _RANK, str(rank), behaviour]
        await group.start(f"Rank {rank}", command, dict(os.environ))
    try:
        yield group
    finally:
        for process in group.processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def end_of(group: Group) -> str:
    async with asyncio.timeout(PATIENCE):
        return await group.watch()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("state", ["loads", "serves"])
@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "died with exit status -9"), (signal.SIGSTOP, "gives no sign of life")]
)
async def test_a_rank_that_dies_or_stands_still_ends_all(
    number: signal.Signals, words: str, state: str, rank: int, capfd: pytest.CaptureFixture[str]
) -> None:
    async with ranks(state, state) as group:
        watching = asyncio.create_task(end_of(group))
        await until(lambda: all(peer.layers and peer.loaded == (state == "serves") for peer in group._peers))
        group.processes[rank].send_signal(number)
        assert await watching == f"Rank {rank} {words}."
        assert [process.returncode is not None for process in group.processes] == [True, True]
        assert group.processes[1 - rank].returncode == 1
    assert f"rank {1 - rank} ends: Rank {rank} {words}." in capfd.readouterr().err


async def test_a_rank_that_fails_says_why() -> None:
    async with ranks("serves", "fails", "serves") as group:
        assert await end_of(group) == "Rank 1: There is no model here."


async def test_a_death_explains_what_others_fail_of() -> None:
    """A rank that adds up with one that is gone fails first, and is not to blame."""
    async with ranks("serves", "serves") as group:
        group._suffer(Cause.FAILED, "Rank 0: the connection was closed.")
        group.processes[1].kill()
        assert await end_of(group) == "Rank 1 died with exit status -9."


async def test_an_end_that_is_meant_to_be_leaves_nobody_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    async with ranks("serves", "loads") as group:
        await group.end("")
        assert all(process.returncode is not None for process in group.processes)
    assert capfd.readouterr().err == ""


def test_whoever_works_or_waits_may_be_silent_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        pid = 1

    activities = {"works": [Activity(ticks, False) for ticks in range(300)], "waits": [Activity(7, True)] * 300}
    for name, seen in {**activities, "stopped": [Activity(7, False)] * 100}.items():
        peer = Peer(name, None, Process())  # type: ignore[arg-type]
        looks = 0
        for activity in seen:
            monkeypatch.setattr(module, "_activity", lambda pid, activity=activity: activity)
            peer.look()
            looks += 1
            if peer.gone:
                break
        assert looks == (module._SILENT_AND_IDLE + 1 if name == "stopped" else module._SILENT_AT_WORK)


def test_a_rank_is_still_within_one_layer_only() -> None:
    peer = Peer("Rank 1", None)  # type: ignore[arg-type]
    for layers in (1, 1, 1):
        peer.heard(Beat(layers, working=True))
        peer.look()
    assert peer.still == 3
    peer.heard(Beat(2, working=True))
    assert peer.still == 0
    peer.look()
    peer.heard(Beat(2, working=False))
    assert peer.still == 0


# Between machines


@asynccontextmanager
async def two_machines() -> AsyncIterator[tuple[Group, Line, asyncio.StreamWriter]]:
    """A group with one rank and a line to another machine; the other end of that, and what is below it."""
    arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda *streams: arrived.put_nowait(streams), "127.0.0.1", 0, limit=LONGEST)
    host, port = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(host, port, limit=LONGEST)
    async with ranks("serves") as group:
        group.join("Node 1, with rank 1,", Line(*await arrived.get()))
        yield group, Line(reader, writer), writer
    writer.close()
    server.close()


async def heard(other: Line) -> line.Message:
    """The first message that is not just a sign of life."""
    async with asyncio.timeout(PATIENCE):
        while isinstance(message := await other.hear(), Beat):
            pass
    assert message is not None
    return message


async def test_what_ends_one_machine_ends_the_others() -> None:
    async with two_machines() as (group, other, _):
        watching = asyncio.create_task(end_of(group))
        other.say(Failed("Rank 1 died with exit status -9.", Cause.GONE))
        assert await watching == "Rank 1 died with exit status -9."
        assert await heard(other) == End("Rank 1 died with exit status -9.")


@pytest.mark.parametrize("how", ["closed", "silent", "rubbish"])
async def test_a_machine_that_is_cut_off_ends_all(how: str) -> None:
    async with two_machines() as (group, _, writer):
        watching = asyncio.create_task(end_of(group))
        if how == "closed":
            writer.close()
        if how == "rubbish":
            writer.write(b"\x00\xff{" * 50_000)
        assert (await watching).startswith(
            "Node 1, with rank 1, gives no" if how == "silent" else "Node 1, with rank 1, is"
        )


async def test_the_first_machine_has_the_last_word() -> None:
    async with two_machines() as (group, other, _):
        group._first_machine = group._peers[1].line
        watching = asyncio.create_task(end_of(group))
        group.processes[0].kill()
        assert await heard(other) == Failed("Rank 0 died with exit status -9.", Cause.GONE)
        other.say(End("Rank 7 died with exit status 3."))
        assert await watching == "Rank 7 died with exit status 3."


async def test_a_machine_that_is_told_to_end_says_so() -> None:
    async with two_machines() as (group, other, _):
        group._first_machine = group._peers[1].line
        group.leave("Node 1 was told to end.")
        assert await heard(other) == Failed("Node 1 was told to end.", Cause.GONE)


@pytest.mark.parametrize("text", [b"", b"{}", b"[" * 10_000, b'{"type":"beat","layers":"x"}', b"\xff\xfe", b"null"])
def test_what_is_no_message_is_none(text: bytes) -> None:
    assert decode(text) is None


def test_messages_are_lines() -> None:
    message = Failed("two\nlines", Cause.GONE)
    assert b"\n" not in encode(message)
    assert decode(encode(message)) == message
