"""Many open streams at once through the router: do they all end whole, and what do they take?

    python benchmarks/router_streams.py [--streams 10000] [--chunks 6] [--interval 5]

All streams are open at the same time, before two mock engines. A stream takes one connection of the client, two of the
router and one of an engine, so the limit of open files must be above twice the number of streams; it is raised where
that is allowed. Prints a Markdown table.
"""

import argparse
import asyncio
import resource
import time
import urllib.request

import http_load
import psutil
import uvloop
from router_path import answers, mocks, ours
from servers import cpu_seconds, free_port, resident_mib, server


def allow_files(count: int) -> None:
    """Raises SystemExit where the system does not allow that many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, hard)))
    except (ValueError, OSError):
        raise SystemExit(f"{count} open files are needed and {hard} allowed: ulimit -n, or fewer --streams") from None


def in_flight(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("headwater_router_endpoint_in_flight")))


async def run(port: int, streams: int, router: psutil.Process) -> tuple[dict[str, float], int, float]:
    """What the load saw, the most requests in flight and the most MiB that the router had."""
    most, memory = 0, 0.0
    load = asyncio.ensure_future(http_load.run(port, streams, streams, stream=True))
    while not load.done():
        await asyncio.wait([load], timeout=1)
        most = max(most, await asyncio.to_thread(in_flight, port))
        memory = max(memory, resident_mib(router))
    return load.result(), most, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--chunks", type=int, default=6, help="of a stream")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two chunks of a stream")
    options = parser.parse_args()
    allow_files(2 * options.streams + 1000)
    engines = [free_port(), free_port()]
    behind = mocks(engines, options.chunks, 1000 * options.interval)
    port = free_port()
    router_command = ours(engines).format(port=port)
    probe = http_load.requests(stream=False)[0]
    with (
        server(behind, lambda: all(map(answers, engines))),
        server(router_command, lambda: answers(port, probe)) as router,
    ):
        empty, before, begun = resident_mib(router), cpu_seconds(router), time.perf_counter()
        result, most, memory = uvloop.run(run(port, options.streams, router))
        seconds, cpu = time.perf_counter() - begun, cpu_seconds(router) - before
        left = in_flight(port)
    print("| streams | whole | most open at once | seconds | CPU, s | memory before, MiB | at most | open after |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {options.streams} | {result['whole']:.0f} | {most} | {seconds:.1f} | {cpu:.1f} | {empty:.0f} "
        f"| {memory:.0f} | {left} |"
    )
    if result["whole"] != options.streams or left:
        raise SystemExit("not all streams ended whole")


if __name__ == "__main__":
    main()
