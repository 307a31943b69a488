"""Plain numbers show on the metrics page as Prometheus's own counters and histograms would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from headwater.tally import Distribution, Tally

BOUNDS = (1e-5, 0.002, 0.5, 1, 80)


def page(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


@given(values=st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 100))))
def test_a_distribution_reads_as_a_histogram(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    distribution = Distribution("seconds", "Some.", BOUNDS, ours)
    histogram = Histogram("seconds", "Some.", buckets=BOUNDS, registry=theirs)
    for value in values:
        distribution.labels().observe(value)
        histogram.observe(value)
    assert page(ours) == page(theirs)


@given(values=st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(0, 100))))
def test_a_distribution_with_labels_reads_as_a_histogram(values: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    distribution = Distribution("seconds", "Some.", BOUNDS, ours, ("model",))
    histogram = Histogram("seconds", "Some.", ("model",), buckets=BOUNDS, registry=theirs)
    for model, value in values:
        distribution.labels(model).observe(value)
        histogram.labels(model).observe(value)
    assert page(ours) == page(theirs)


@given(amounts=st.lists(st.tuples(st.sampled_from(['a"\\', "b\n", ""]), st.integers(0, 2**40))))
def test_a_tally_reads_as_a_counter(amounts: list[tuple[str, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally, counter = Tally("things", "Some.", ("kind",), ours), Counter("things", "Some.", ("kind",), registry=theirs)
    for kind, amount in amounts:
        tally.labels(kind).inc(amount)
        counter.labels(kind).inc(amount)
    assert page(ours) == page(theirs)


def test_a_tally_without_labels_begins_at_zero() -> None:
    registry = CollectorRegistry()
    Tally("things", "Some.", (), registry)
    assert page(registry)[-1] == "things_total 0.0"


def test_a_tally_wants_a_value_for_each_label() -> None:
    with pytest.raises(ValueError, match="things has the labels kind"):
        Tally("things", "Some.", ("kind",), CollectorRegistry()).labels()
