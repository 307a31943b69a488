"""`headwater top`: what a router does at this moment, read from its metrics again and again."""

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from headwater.cli.parser import CommandError, UsageError
from headwater.cli.parts import part

_ROUTER: Final = "headwater_router_"
_PATIENCE: Final = 5.0
_DECISIONS: Final = 200
_PREFIXES: Final = 5
"""Most that are shown."""


@dataclass(slots=True)
class Reading:
    """One look at the metrics page."""

    at: float
    """Seconds, of a clock that only goes forward."""
    values: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    """By metric without its beginning, then by the first label's value; empty where it has none."""
    decisions: list[dict[str, Any]] = field(default_factory=list)
    """The router's last ones, where it tells them."""

    def total(self, metric: str) -> float:
        return sum(self.values[metric].values())


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Shows what a router does: its endpoints with their load and cache, models and keys. Reads /metrics, which is "
        "on the admin port where there is one; the admin API there tells the prefixes that are asked for most, too."
    )
    parser.add_argument(
        "url", metavar="URL", nargs="?", default="http://127.0.0.1:8080", help="default: http://127.0.0.1:8080"
    )
    parser.add_argument("--api-key", metavar="KEY", default="none", help="what the admin API wants to see")
    parser.add_argument("--interval", type=float, default=1.0, metavar="NUMBER", help="seconds (default: 1)")
    parser.add_argument("--once", action="store_true", help="show it once, after one interval, and end")


def run(arguments: argparse.Namespace) -> int:
    if not arguments.url.startswith(("http://", "https://")):
        raise UsageError(f"URL must begin with http:// or https://; did you mean http://{arguments.url}?")
    if arguments.interval <= 0:
        raise UsageError(f"--interval must be above 0, found {arguments.interval:g}")
    with httpx.Client(timeout=_PATIENCE, headers={"authorization": f"Bearer {arguments.api_key}"}) as client:
        before = look(client, arguments.url)
        if arguments.once:
            time.sleep(arguments.interval)
            Console().print(view(before, look(client, arguments.url)))
            return 0
        with Live(view(before, before), screen=True) as live:
            while True:
                time.sleep(arguments.interval)
                now = look(client, arguments.url)
                live.update(view(before, now))
                before = now


def look(client: httpx.Client, url: str) -> Reading:
    """Raises CommandError."""
    parse = part("prometheus_client.parser", "router").text_string_to_metric_families
    try:
        answer = client.get(f"{url.rstrip('/')}/metrics")
        page = answer.raise_for_status().text
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise CommandError(f"{url}/metrics answers {status}; with --admin-port it is on that port alone") from None
    except httpx.HTTPError as error:
        raise CommandError(f"{url} cannot be reached: {error}") from None
    reading = Reading(time.monotonic(), decisions=_decisions(client, url))
    for sample in (sample for family in parse(page) for sample in family.samples):
        if sample.name.startswith(_ROUTER):
            label = next(iter(sample.labels.values()), "")
            of = reading.values[sample.name.removeprefix(_ROUTER)]
            of[label] = of.get(label, 0.0) + sample.value
    if not reading.values:
        raise CommandError(f"{url}/metrics has nothing of a router: is it another server's?")
    return reading


def _decisions(client: httpx.Client, url: str) -> list[dict[str, Any]]:
    """The last ones; none where there is no admin API, or not for us."""
    try:
        answer = client.get(f"{url.rstrip('/')}/admin/decisions?limit={_DECISIONS}")
        told = answer.json() if answer.status_code == 200 else []
    except (httpx.HTTPError, ValueError):
        return []
    return told if isinstance(told, list) else []


def view(before: Reading, now: Reading) -> Group:
    """What changed is told a second."""
    seconds = max(now.at - before.at, 1e-9)

    def rate(metric: str, label: str) -> str:
        grown = now.values[metric].get(label, 0.0) - before.values[metric].get(label, 0.0)
        return f"{max(0.0, grown) / seconds:,.1f}"

    answered = max(0.0, now.total("requests_total") - before.total("requests_total")) / seconds
    prompt = now.total("prompt_tokens_total")
    cached = now.total("actual_cached_tokens_total") / prompt if prompt else 0.0
    open_requests = now.total("open_requests")
    summary = (
        f"{open_requests:.0f} requests open   {answered:,.1f} answered/s   {cached:.0%} of prompts came from caches"
    )
    endpoints = _table(
        ("endpoint", "ready", "in flight", "running", "waiting", "KV cache"),
        (
            (
                name,
                "yes" if ready else "no",
                _number(now, "endpoint_in_flight", name),
                _number(now, "endpoint_reported_running", name),
                _number(now, "endpoint_reported_waiting", name),
                _number(now, "endpoint_reported_cache_usage", name, 100, "%"),
            )
            for name, ready in sorted(now.values["endpoint_ready"].items())
        ),
    )
    models = _table(
        ("model", "prompt tokens/s", "output tokens/s"),
        (
            (name, rate("prompt_tokens_total", name), rate("output_tokens_total", name))
            for name in sorted(now.values["prompt_tokens_total"])
        ),
    )
    keys = _table(
        ("key", "running", "requests/s"),
        (
            (name, _number(now, "key_running", name), rate("key_requests_total", name))
            for name in sorted(now.values["key_requests_total"])
        ),
    )
    prefixes = _table(("prefix", "model", f"of the last {len(now.decisions)}", "cached", "at"), _hot(now.decisions))
    tables = (endpoints, models, keys, prefixes)
    return Group(summary, "", *(each for table in tables if table.row_count for each in (table, "")))


def _hot(decisions: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Beginnings of prompts that more than one request has, by how many have them."""
    requests = Counter(each["prefix"] for each in decisions if each.get("prefix") and each["attempt"] == 1)
    for prefix, count in requests.most_common(_PREFIXES):
        if count > 1:
            alike = [each for each in decisions if each.get("prefix") == prefix]
            prompt = sum(each["prompt_tokens"] for each in alike)
            cached = sum(each["candidates"][0]["cached_tokens"] for each in alike if each["candidates"])
            endpoints = sorted({each["endpoint"] for each in alike})
            share = f"{min(1.0, cached / prompt):.0%}" if prompt else ""
            yield prefix[:8], alike[0]["model"], f"{count}", share, ", ".join(endpoints)


def _number(reading: Reading, metric: str, label: str, times: float = 1, unit: str = "") -> str:
    value = reading.values[metric].get(label)
    return "" if value is None else f"{times * value:.0f}{unit}"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table
