"""`make test-backends`: one contract over every real server that is installed, and the table of docs/backends.md.

    python -m tests.backends headwater transformers vllm=RECIPE sglang=RECIPE tgi=RECIPE

A recipe is a command that takes `serve FOLDER ARGUMENTS`. What the servers answered is written to
tests/fixtures/contract/, where it stands in for them in `make test`. Without a server named, that is judged anew.
"""

import argparse
import asyncio
import datetime
import sys
import tempfile
from pathlib import Path

import httpx

from tests.backends import phases
from tests.backends.contract import ask_all, summary
from tests.backends.flags import write_flags
from tests.backends.model import make_model
from tests.backends.requests import MODEL
from tests.backends.servers import PATIENCE, Server
from tests.backends.table import Column, known, write
from tests.backends.tape import FIXTURES, Tape, play, tap, tapes
from tests.router.gateway import gateway
from tests.router.upstream import upstream

_LONGEST_ANSWER = 90.0
"""Seconds; some servers say all that they are asked for where they should refuse."""
_SLOW = {"probe_interval": 1.0, "probe_timeout": 3.0}
"""As a router's own."""


async def see(backend: str, recipe: str, folder: Path) -> Column:
    """Start the server and go through the contract."""
    server = Server(backend, recipe, folder)
    server.start()
    try:
        await server.until_ready()
        tape = Tape(backend, await server.version(), datetime.date.today().isoformat())
        if backend != "headwater":
            write_flags(backend, tape.version, server.help())
        rows = await _requests(server, tape)
        tape.write(FIXTURES / f"{backend}.jsonl")
        if tape.unanswered:  # It is still at it.
            server.kill()
            server.start()
            await server.until_ready()
        rows |= await _phases(server, folder)
    finally:
        server.kill()
    return Column(backend, tape.version, tape.date, rows)


async def _requests(server: Server, tape: Tape) -> dict[str, str]:
    # A connection for each: some servers close theirs behind an error, and say nothing of it.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with upstream(MODEL) as stand_in, httpx.AsyncClient(timeout=_LONGEST_ANSWER, limits=limits) as http:
        stand_in.pages[b"/model_info"] = stand_in.pages[b"/info"] = (200, b"{}")
        tap(tape, stand_in, server.url, http)
        async with gateway(stand_in, backend=server.backend, answer_timeout=PATIENCE) as router:
            router.client.timeout = httpx.Timeout(PATIENCE)
            seen = await ask_all(router)
    for name, each in seen.items():
        if each.verdict != "done":
            print(f"  {name}: {each.verdict}: {each.what[:160]}", flush=True)
    return summary(seen)


async def _phases(server: Server, folder: Path) -> dict[str, str]:
    rows = {}
    settings = {"endpoint": [server.endpoint], "policy": "prefix", "tokenizer": [f"{MODEL}={folder}"], **_SLOW}
    async with gateway(ready=1, **settings) as router:
        rows["under load"] = await phases.under_load(router)
        rows["too many at once"] = await phases.overloaded(router)
        turns = await phases.conversation(router, ("One.", "Two.", "Three."), phases.system_prompt(3))
    async with gateway(ready=1, **settings) as router:
        await asyncio.sleep(3)  # As long as it takes to be told.
        turns += await phases.conversation(router, ("One.", "Two.", "Three.", "Four."), phases.system_prompt(3))
        rows["cached tokens, predicted/actual"] = _told(turns[:3]) + "; a new router: " + _told(turns[3:])
        rows["killed and started again"] = await phases.restarted(server, router)
        again = await phases.conversation(router, ("One.", "Two.", "Three."), phases.system_prompt(5))
        rows["cached tokens after that"] = _told(again)
        rows["SIGTERM within an answer"] = await phases.drained(server, router)
    for name, told in rows.items():
        print(f"  {name}: {told}", flush=True)
    return rows


async def judge_anew() -> list[Column]:
    columns = []
    for path in tapes():
        tape = Tape.read(path)
        async with upstream(MODEL) as stand_in, gateway(stand_in, backend=tape.backend) as router:
            stand_in.pages[b"/model_info"] = stand_in.pages[b"/info"] = (200, b"{}")
            play(tape, stand_in)
            seen = summary(await ask_all(router))
        before = known().get(tape.backend)
        more = {row: told for row, told in before.rows.items() if row not in seen} if before else {}
        columns.append(Column(tape.backend, tape.version, tape.date, seen | more, tape.source))
    return columns


def _told(turns: list[tuple[int, int | None]]) -> str:
    return ", ".join(f"{predicted}/{'?' if actual is None else actual}" for predicted, actual in turns)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("servers", nargs="*", metavar="BACKEND[=RECIPE]")
    asked = parser.parse_args().servers
    columns = [] if asked else asyncio.run(judge_anew())
    if columns:
        write(columns)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / MODEL)
        for each in asked:
            backend, _, recipe = each.partition("=")
            print(f"{backend}:", flush=True)
            columns.append(asyncio.run(see(backend, recipe, model)))
            write(columns[-1:])
    broken = [row for column in columns for row in column.rows.values() if "broken:" in row]
    print("\n".join(broken))
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
