"""What PromQL of the alert rules gives for metrics pages, as far as the rules go: parsed by promql-parser."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import promql_parser
from prometheus_client import CollectorRegistry

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Scrape = list[tuple[str, Mapping[str, str], float]]
"""Samples: name, labels, value."""

_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    "==": lambda a, b: a == b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


def scraped(pages: Mapping[str, CollectorRegistry]) -> Scrape:
    """The pages of several pods, by their names, with the label that Prometheus puts on them."""
    return [
        (sample.name, {**sample.labels, "pod": pod}, sample.value)
        for pod, registry in pages.items()
        for metric in registry.collect()
        for sample in metric.samples
    ]


def evaluate(expression: str, now: Scrape, before: Scrape) -> Vector:
    """`before`: as it was at the beginning of every range. Raises ValueError for what no rule had so far."""
    return _value(promql_parser.parse(expression), now, before)


def _value(node: Any, now: Scrape, before: Scrape) -> Vector:
    match node:
        case promql_parser.ParenExpr():
            return _value(node.expr, now, before)
        case promql_parser.VectorSelector():
            return _selected(node, now)
        case promql_parser.Call() if node.func.name == "rate":
            (ranged,) = node.args
            selector, seconds = ranged.vector_selector, ranged.range.total_seconds()
            first = _selected(selector, before)
            return {
                labels: (last - first.get(labels, last)) / seconds for labels, last in _selected(selector, now).items()
            }
        case promql_parser.Call() if node.func.name == "absent":
            return {} if _value(node.args[0], now, before) else {frozenset(): 1.0}
        case promql_parser.AggregateExpr() if str(node.op) == "sum":
            by = set(node.modifier.labels) if node.modifier else set()
            summed: Vector = {}
            for labels, value in _value(node.expr, now, before).items():
                kept = frozenset(each for each in labels if each[0] in by)
                summed[kept] = summed.get(kept, 0.0) + value
            return summed
        case promql_parser.BinaryExpr():
            return _combined(node, now, before)
    raise ValueError(f"no rule had {node} so far")


def _combined(node: Any, now: Scrape, before: Scrape) -> Vector:
    left, name = _value(node.lhs, now, before), str(node.op)
    if isinstance(node.rhs, promql_parser.NumberLiteral):
        return {labels: value for labels, value in left.items() if _COMPARE[name](value, node.rhs.val)}
    right = _value(node.rhs, now, before)
    if name == "and":
        return {labels: value for labels, value in left.items() if labels in right}
    if name == "or":
        return right | left
    raise ValueError(f"no rule had {name} between vectors so far")


def _selected(selector: Any, scrape: Scrape) -> Vector:
    wanted = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
    if any(str(matcher.op) != "MatchOp.Equal" for matcher in selector.matchers.matchers):
        raise ValueError(f"no rule had {selector} so far")
    return {
        frozenset(labels.items()): value
        for name, labels, value in scrape
        if name == selector.name and all(labels.get(label) == text for label, text in wanted.items())
    }
