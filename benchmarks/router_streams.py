"""Many open streams at once through the router: do they all end whole, and what do they take?

    python benchmarks/router_streams.py [--streams 10000] [--chunks 6] [--interval 5] [--prompt-bytes 2048]

All clients are there at the same time, before two mock engines. A stream takes one descriptor of the load, two of the
router and one of an engine. The router is allowed what the system allows; where that is less than twice the number of
streams, some wait in it for others to end, and so the run takes twice as long. Prints a Markdown table.
"""

import argparse
import asyncio
import resource
import time
import urllib.request
from typing import NamedTuple

import http_load
import psutil
import uvloop
from router_path import answers, mocks, ours
from servers import cpu_seconds, free_port, resident_mib, server

from headwater.http.descriptors import KEPT_SECONDS


def allow_files(count: int) -> int:
    """Returns how many the system allows. Raises SystemExit where that is not `count`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count > hard:
        raise SystemExit(f"{count} open files are needed and {hard} allowed: ulimit -n, or fewer --streams")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Seen(NamedTuple):
    """What the router's own metrics and the system say of it at one moment."""

    in_flight: int
    waiting: int
    open_files: int
    memory: float
    """MiB."""


def look(port: int, router: psutil.Process) -> Seen:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    in_flight, waiting = (
        int(sum(float(line.split()[-1]) for line in lines if line.startswith(f"headwater_router_{name}")))
        for name in ("endpoint_in_flight", 'waiting{reason="no_connection"}')
    )
    return Seen(in_flight, waiting, router.num_fds(), resident_mib(router))


async def run(
    port: int, streams: int, prompt_bytes: int, chunks: int, router: psutil.Process
) -> tuple[dict[str, float], Seen]:
    """What the load saw, and the most of everything that was seen of the router, looking once a second."""
    most = Seen(0, 0, 0, 0.0)
    load = asyncio.ensure_future(http_load.run(port, streams, streams, True, prompt_bytes, chunks))
    while not load.done():
        await asyncio.wait([load], timeout=1)
        seen = await asyncio.to_thread(look, port, router)
        most = Seen(*map(max, zip(most, seen, strict=True)))
    return load.result(), most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--chunks", type=int, default=6, help="of a stream")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two chunks of a stream")
    parser.add_argument("--prompt-bytes", type=int, default=http_load.PROMPT_BYTES)
    options = parser.parse_args()
    allowed = allow_files(options.streams + 1000)
    engines = [free_port(), free_port()]
    behind = mocks(engines, 1000 * options.interval)
    port = free_port()
    router_command = ours(engines).format(port=port)
    probe = http_load.requests(stream=False)[0]
    with (
        server(behind, lambda: all(map(answers, engines))),
        server(router_command, lambda: answers(port, probe)) as router,
    ):
        empty, before, begun = resident_mib(router), cpu_seconds(router), time.perf_counter()
        result, most = uvloop.run(run(port, options.streams, options.prompt_bytes, options.chunks, router))
        seconds, cpu = time.perf_counter() - begun, cpu_seconds(router) - before
        left = look(port, router)
        time.sleep(KEPT_SECONDS + 5)
        later = look(port, router)
    rows = {
        "streams, all at once": options.streams,
        "bytes of a prompt": options.prompt_bytes,
        "answered whole": f"{result['whole']:.0f}",
        "most in flight at engines": most.in_flight,
        "most waiting for a descriptor": most.waiting,
        "most open files, of those allowed": f"{most.open_files} of {allowed}",
        "seconds": f"{seconds:.1f}",
        "CPU of the router, s": f"{cpu:.1f}",
        "its memory before and at most, MiB": f"{empty:.0f}, {most.memory:.0f}",
        "in flight, waiting, open files after": f"{left.in_flight}, {left.waiting}, {left.open_files}",
        "open files a minute later": later.open_files,
    }
    print("| | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    if result["whole"] != options.streams or left.in_flight or left.waiting:
        raise SystemExit("not all streams ended whole")


if __name__ == "__main__":
    main()
