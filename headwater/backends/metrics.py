"""Reads a server's load off its Prometheus page. Needs prometheus-client, of the [router] and [engine] extras.

What a server does not report is None, which is not 0: a balancer that took silence for idleness would send everything
to the one server that it knows nothing of.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from headwater.backends.base import AdapterReading, LoadMetrics, Reading

_LONGEST_LINE: Final = 4096
"""Characters. The parser takes the square of a line's labels: 4 MiB of them would be minutes."""
_MOST_TEXT: Final = 2**18
"""Characters of all lines that matter: some lines for each data-parallel engine."""
_LARGEST: Final = 2.0**53
"""Numbers are believed up to here, and from 0 on: none below is told of load, and with those above the router could not
reckon, as with the sum of two numbers that are the largest there are."""
_MOST_ADAPTERS: Final = 256
"""In use at once."""
_LONGEST_NAME: Final = 256
"""Characters of an adapter's; a longer one is nobody's."""


class Adapters(NamedTuple):
    """What a server tells of its LoRA adapters."""

    slots: int
    """How many can be in use at once."""
    names: tuple[str, ...]
    """Of those in use, and before them of those for which requests only wait. What nobody uses may be there as well:
    vLLM tells only of requests."""


class TokenTimes(NamedTuple):
    """From one token to the next, of all answers since the server began, as its histogram has them."""

    seconds: float
    """The sum."""
    tokens: float


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Of the whole server, where it reports several data-parallel engines."""

    running: int | None
    waiting: int | None
    cache_usage: float | None
    """0 to 1, the mean of the engines."""
    total_blocks: int | None
    block_size: int | None
    most_running: int | None = None
    """Requests that run at once."""
    ranks: int = 1
    """Data-parallel engines; 1 where it tells of none."""
    adapters: Adapters | None = None
    token_times: TokenTimes | None = None
    by_rank: tuple["LoadReport", ...] = ()
    """Of each engine, where there are several and the page tells of all of them, from number 0 on. Not where a node has
    those of one part of the numbers: what it calls its first then is not 0 to it."""


def read_load(page: str, metrics: LoadMetrics) -> LoadReport:
    """Find the metrics on the page. Raises ValueError for a page that is none."""
    samples = _of_first_parts([sample for sample in _samples(page, metrics) if _of_all(sample, metrics)], metrics)
    ranks = _ranks(samples, metrics.rank)
    all_of_them = len(ranks) > 1 and ranks.keys() == set(range(len(ranks)))
    return _report(
        samples,
        metrics,
        ranks=max(ranks, default=0) + 1,
        adapters=_adapters(page, metrics.adapters),  # told of the server alone, not of its engines
        by_rank=tuple(_report(ranks[number], metrics) for number in range(len(ranks))) if all_of_them else (),
    )


def _report(
    samples: list[Sample],
    metrics: LoadMetrics,
    *,
    ranks: int = 1,
    adapters: Adapters | None = None,
    by_rank: tuple[LoadReport, ...] = (),
) -> LoadReport:
    block_size = _integer(_values(samples, metrics.block_size), max)
    return LoadReport(
        running=_integer(_values(samples, metrics.running), sum),
        waiting=_integer(_values(samples, metrics.waiting), sum),
        cache_usage=_share(_values(samples, metrics.cache_usage)),
        total_blocks=_total_blocks(samples, metrics, block_size),
        block_size=block_size,
        most_running=_integer(_values(samples, metrics.most_running), sum),
        ranks=ranks,
        adapters=adapters,
        token_times=_token_times(samples, metrics),
        by_rank=by_rank,
    )


@cache
def _beginnings(metrics: LoadMetrics) -> tuple[str, ...]:
    """Of the lines that matter."""
    readings = (
        *(*metrics.running, *metrics.waiting, *metrics.cache_usage, *metrics.most_running),
        *(*metrics.total_blocks, *metrics.total_tokens, *metrics.block_size),
        *(*metrics.token_seconds, *metrics.tokens),
    )
    return tuple({reading.metric + end for reading in readings for end in ("{", " ")})


def _samples(page: str, metrics: LoadMetrics) -> list[Sample]:
    beginnings = _beginnings(metrics)
    # The parser takes 30 times as long over the whole page as over the few lines that matter.
    lines = [line for line in page.splitlines() if line.startswith(beginnings) and len(line) <= _LONGEST_LINE]
    samples: list[Sample] = []
    left = _MOST_TEXT
    for line in lines:
        if (left := left - len(line)) < 0:
            break
        samples += _samples_of(line)
    return samples


@lru_cache(maxsize=1024)
def _samples_of(line: str) -> tuple[Sample, ...]:
    """Most lines are what they were a second ago; the longest, with the configuration among its labels, always is."""
    return tuple(_parsed(line))


def _parsed(line: str) -> Iterator[Sample]:
    return (sample for family in text_string_to_metric_families(line) for sample in family.samples)


def _of_all(sample: Sample, metrics: LoadMetrics) -> bool:
    """Parts would be counted twice: in their own samples, and in that of the whole."""
    return all(sample.labels.get(label, value) == value for label, value in metrics.of_all)


def _of_first_parts(samples: list[Sample], metrics: LoadMetrics) -> list[Sample]:
    """The others who share an engine tell the same once more."""
    if metrics.part is None:
        return samples
    first: dict[str, int] = {}
    places = [
        (sample.labels.get(metrics.rank or "", ""), _number(sample.labels.get(metrics.part))) for sample in samples
    ]
    for rank, part in places:
        if part is not None:
            first[rank] = min(part, first.get(rank, part))
    return [sample for sample, (rank, part) in zip(samples, places, strict=True) if part is None or part == first[rank]]


def _token_times(samples: list[Sample], metrics: LoadMetrics) -> TokenTimes | None:
    seconds, tokens = _values(samples, metrics.token_seconds), _values(samples, metrics.tokens)
    return TokenTimes(sum(seconds), sum(tokens)) if seconds and tokens else None


def _total_blocks(samples: list[Sample], metrics: LoadMetrics, block_size: int | None) -> int | None:
    blocks = _integer(_values(samples, metrics.total_blocks), sum)
    tokens = _integer(_values(samples, metrics.total_tokens), sum)
    return tokens // block_size if blocks is None and tokens is not None and block_size else blocks


def _values(samples: list[Sample], readings: tuple[Reading, ...]) -> list[float]:
    """Those of the first reading that is there; a value that is not to be believed is not there."""
    for reading in readings:
        values = [_value(sample, reading) for sample in samples if sample.name == reading.metric]
        if found := [value for value in values if value is not None]:
            return found
    return []


def _value(sample: Sample, reading: Reading) -> float | None:
    try:
        value = float(sample.value if reading.label is None else sample.labels[reading.label])
    except (KeyError, ValueError):
        return None
    return value if 0 <= value <= _LARGEST else None


def _ranks(samples: list[Sample], label: str | None) -> dict[int, list[Sample]]:
    """The samples of each engine, by its number."""
    found: dict[int, list[Sample]] = {}
    if label is None:
        return found
    for sample in samples:
        if (number := _number(sample.labels.get(label))) is not None:
            found.setdefault(number, []).append(sample)
    return found


def _number(label: str | None) -> int | None:
    """Of an engine, or of a part of one."""
    return int(label) if label is not None and label.isascii() and label.isdigit() and len(label) < 6 else None


def _adapters(page: str, reading: AdapterReading | None) -> Adapters | None:
    """There is a line for each set of names since the server began, thousands in the end. Only the newest is parsed."""
    if reading is None or reading.metric not in page:
        return None
    lines = [line for line in page.splitlines() if line.startswith(reading.metric + "{")]
    newest = max(lines, key=_written_at, default="")
    sample = next(_parsed(newest), None) if len(newest) <= _LONGEST_LINE else None
    labels = sample.labels if sample is not None else {}
    slots = labels.get(reading.slots, "")
    if not (slots.isascii() and slots.isdigit() and len(slots) < 6 and int(slots)):
        return None
    listed = f"{labels.get(reading.running, '')},{labels.get(reading.waiting, '')}".split(",")
    names = dict.fromkeys(name for each in listed if 0 < len(name := each.strip()) <= _LONGEST_NAME)
    return Adapters(min(int(slots), _MOST_ADAPTERS), tuple(names)[:_MOST_ADAPTERS][::-1])


def _written_at(line: str) -> float:
    try:
        value = float(line.rpartition(" ")[2])
    except ValueError:
        return -math.inf
    return value if math.isfinite(value) else -math.inf


def _integer(values: list[float], combine: Callable[[Iterable[float]], float]) -> int | None:
    return int(combine(values)) if values else None


def _share(values: list[float]) -> float | None:
    """Their mean; what is more than full is full."""
    return min(1.0, sum(values) / len(values)) if values else None
