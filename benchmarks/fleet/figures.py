"""What is told of a run: latencies, what was good, what was refused, what was cached, how even the load was."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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


def figures_of(run: Run) -> Figures:
    workload = run.workload
    answered = [record for record in run.records if record.duration is not None]
    durations = [record.duration for record in answered if record.duration is not None]
    ttfts = [record.ttft for record in answered if record.ttft is not None]
    tokens = [each for record in answered if (each := record.per_token) is not None]
    good = 0
    for record in answered:
        assert record.duration is not None
        allowed = workload.ttft_objective + workload.token_objective * record.request.output_tokens
        began = record.ttft is None or record.ttft <= workload.ttft_objective
        good += began and record.duration <= allowed
    chosen = Counter(record.engine for record in answered)
    return Figures(
        requests=len(run.records),
        ttft_p50=quantile(ttfts, 0.5),
        ttft_p99=quantile(ttfts, 0.99),
        token_p99=quantile(tokens, 0.99),
        mean=fmean(durations),
        p99=quantile(durations, 0.99) or 0.0,
        goodput=good / run.seconds,
        refused=len(run.records) - len(answered),
        cached=sum(record.cached for record in answered) / sum(each.request.prompt_tokens for each in answered),
        imbalance=max(chosen.values()) * len(run.engines) / len(answered),
    )
