"""What becomes of one rank is the end of all, and each says which rank it was. The ranks here have no model.

How soon: test_group_clock.py.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import pytest

from headwater_engine.distributed import group as module
from headwater_engine.distributed import line
from headwater_engine.distributed.group import Activity, Group, Peer
from headwater_engine.distributed.lifeline import VARIABLE
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
_OFTEN: Final = 0.05
"""Seconds between beats and looks, where a test waits for many."""
_BUSY_RANK = f"""
import os, sys, threading
from headwater_engine.distributed import lifeline as module
module.INTERVAL = {_OFTEN}
lifeline = module.Lifeline(int(sys.argv[1]))
lifeline.start()
if sys.argv[2] != "loads":
    lifeline.loaded()
match sys.argv[2]:
    case "waits in its second sum":
        lifeline.begin_sum()
        lifeline.end_sum()
        lifeline.begin_sum()
    case "has had two sums":
        for _ in range(2):
            lifeline.begin_sum()
            lifeline.end_sum()
    case "waits in its first sum":
        lifeline.begin_sum()
    case "computes":
        while True:
            pass
    case "computes on a thread":
        threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()
threading.Event().wait()
"""


@asynccontextmanager
async def ranks(*behaviours: str, program: str = _RANK) -> AsyncIterator[Group]:
    group = Group(alone=False)
    for rank, behaviour in enumerate(behaviours):
        command = [sys.executable, "-c", program, str(rank), behaviour]
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


async def test_a_rank_whose_file_is_cut_off_while_it_reads_says_so() -> None:
    async with ranks("loads", "loads") as group:
        watching = asyncio.create_task(end_of(group))
        await until(lambda: all(peer.layers for peer in group._peers))
        group.processes[1].send_signal(signal.SIGBUS)
        reason = "a file that it reads has become shorter, or cannot be read any more"
        assert await watching == f"Rank 1 died with exit status -7: {reason}."


@pytest.mark.parametrize("other", ["waits in its second sum", "has had two sums"])
async def test_a_rank_that_beats_and_does_nothing_ends_all_that_are_further(
    other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK", _OFTEN)
    async with ranks(other, "stands still", program=_BUSY_RANK) as group:
        assert await end_of(group) == "Rank 1 stands still while others wait for it."
        assert [process.returncode is not None for process in group.processes] == [True, True]


@pytest.mark.parametrize("slow", ["computes", "computes on a thread", "loads", "waits in its first sum"])
async def test_a_rank_that_takes_its_time_is_waited_for(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes: here, four times as many beats and looks as it would have if it did nothing."""
    beats: list[str] = []
    heard = Peer.heard

    def count(peer: Peer, beat: Beat) -> None:
        beats.append(peer.name)
        heard(peer, beat)

    monkeypatch.setattr(Peer, "heard", count)
    monkeypatch.setattr(module, "_LOOK", _OFTEN)
    monkeypatch.setattr(module, "_SILENT_AND_IDLE", module._SILENT_AT_WORK)  # a busy machine keeps them from beating
    async with ranks("waits in its second sum", slow, program=_BUSY_RANK) as group:
        watching = asyncio.create_task(end_of(group))
        await until(lambda: min(map(beats.count, ("Rank 0", "Rank 1"))) > 4 * module._LATE)
        assert not watching.done()
        watching.cancel()


def test_a_rank_that_wants_to_run_and_cannot_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        pid = 1

    for wants, late in ((True, 0), (False, 9)):
        monkeypatch.setattr(module, "_wants_to_run", lambda pid, wants=wants: wants)
        peer = Peer("Rank 1", None, Process())  # type: ignore[arg-type]
        peer.heard(Beat(1, working=True, sums=4, still=True))
        for _ in range(9):
            peer.look(furthest=5)
        assert peer.late == late
        peer.look(furthest=4)
        assert peer.late == 0, "nobody waits for it"


def test_whether_a_process_wants_to_run() -> None:
    assert module._wants_to_run(os.getpid()), "it runs as it asks"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as waits:
        deadline = time.monotonic() + PATIENCE
        while module._wants_to_run(waits.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not module._wants_to_run(waits.pid)
        waits.communicate(b"\n")
    assert module._wants_to_run(waits.pid), "it is gone, and nobody can tell"


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


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="only Linux has pipes that keep writes apart")
def test_the_last_line_of_a_rank_is_one_write_so_that_no_other_writes_into_it() -> None:
    """Also where Python buffers nothing, as in our images."""
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe2(os.O_DIRECT)
    with ours, theirs, os.fdopen(reader, "rb", buffering=0) as lines, os.fdopen(writer, "wb") as stderr:
        environment = os.environ | {"PYTHONUNBUFFERED": "1", VARIABLE: str(theirs.fileno())}
        command = [sys.executable, "-c", _RANK, "3", "serves"]
        with subprocess.Popen(command, stderr=stderr, env=environment, pass_fds=[theirs.fileno()]) as process:
            ours.sendall(encode(End("Rank 1 is gone.")) + b"\n")
            assert process.wait(PATIENCE) == 1
        stderr.close()
        assert lines.read(4096) == b"rank 3 ends: Rank 1 is gone.\n"


def test_whoever_works_or_waits_may_be_silent_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        pid = 1

    activities = {"works": [Activity(ticks, False) for ticks in range(300)], "waits": [Activity(7, True)] * 300}
    for name, seen in {**activities, "stopped": [Activity(7, False)] * 100}.items():
        peer = Peer(name, None, Process())  # type: ignore[arg-type]
        looks = 0
        for activity in seen:
            monkeypatch.setattr(module, "_activity", lambda pid, activity=activity: activity)
            peer.look(0)
            looks += 1
            if peer.gone:
                break
        assert looks == (module._SILENT_AND_IDLE + 1 if name == "stopped" else module._SILENT_AT_WORK)


def test_a_rank_is_still_within_one_layer_only() -> None:
    peer = Peer("Rank 1", None)  # type: ignore[arg-type]
    for layers in (1, 1, 1):
        peer.heard(Beat(layers, working=True))
        peer.look(0)
    assert peer.still == 3
    peer.heard(Beat(2, working=True))
    assert peer.still == 0
    peer.look(0)
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
