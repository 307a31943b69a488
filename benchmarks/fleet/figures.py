"""What is told of a run: latencies, what was good, what was refused, what was cached, how even the load was."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from statistics import fmean

from benchmarks.fleet.simulation import Run


@dataclass(frozen=True, slots=True)
class Figures:
    """Times are seconds."""

    requests: int
    ttft_p50: float | None
    """None where nothing was streamed; so for the next two."""
    ttft_p99: float | None
    token_p99: float | None
    mean: float
    """From the request to the last token; so for the next."""
    p99: float
    goodput: float
    """Answers a second that kept both objectives, of those not streamed: a duration of as much."""
    refused: int
    cached: float
    """Share of the prompt tokens that came from cache."""
    imbalance: float
    """Requests of the busiest engine over the mean of all."""

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def quantile(values: Sequence[float], share: float) -> float | None:
    """A measured value; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


@dataclass(frozen=True, slots=True)
class Seen:
    """What clients saw of a run: all that figures are made of, of which several runs can be kept."""

    requests: int
    seconds: float
    ttfts: Sequence[float]
    durations: Sequence[float]
    per_token: Sequence[float]
    good: int
    cached_tokens: int
    prompt_tokens: int
    imbalance: float


def seen_of(run: Run, since: float = 0.0) -> Seen:
    """Of the requests that came from this second on; one of them must have been answered."""
    workload = run.workload
    came = [record for record in run.records if record.request.at >= since]
    answered = [record for record in came if record.duration is not None]
    good = 0
    for record in answered:
        assert record.duration is not None
        allowed = workload.ttft_objective + workload.token_objective * record.request.output_tokens
        began = record.ttft is None or record.ttft <= workload.ttft_objective
        good += began and record.duration <= allowed
    chosen = Counter(record.engine for record in answered)
    return Seen(
        requests=len(came),
        seconds=run.seconds - since,
        ttfts=[record.ttft for record in answered if record.ttft is not None],
        durations=[record.duration for record in answered if record.duration is not None],
        per_token=[each for record in answered if (each := record.per_token) is not None],
        good=good,
        cached_tokens=sum(record.cached for record in answered),
        prompt_tokens=sum(record.request.prompt_tokens for record in answered),
        imbalance=max(chosen.values()) * len(run.engines) / len(answered),
    )


def pooled(runs: Sequence[Seen]) -> Figures:
    """Of all their requests together."""
    ttfts, durations, per_token = (
        [each for run in runs for each in values(run)]
        for values in (attrgetter("ttfts"), attrgetter("durations"), attrgetter("per_token"))
    )
    requests = sum(run.requests for run in runs)
    return Figures(
        requests=requests,
        ttft_p50=quantile(ttfts, 0.5),
        ttft_p99=quantile(ttfts, 0.99),
        token_p99=quantile(per_token, 0.99),
        mean=fmean(durations),
        p99=quantile(durations, 0.99) or 0.0,
        goodput=sum(run.good for run in runs) / sum(run.seconds for run in runs),
        refused=requests - len(durations),
        cached=sum(run.cached_tokens for run in runs) / sum(run.prompt_tokens for run in runs),
        imbalance=fmean(run.imbalance for run in runs),
    )


def figures_of(run: Run) -> Figures:
    return pooled([seen_of(run)])
