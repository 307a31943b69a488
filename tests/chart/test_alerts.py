"""Each alert of the chart goes off where it should, on the operator's own metrics page, and nowhere else."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from headwater_operator.metrics import OperatorMetrics
from tests.chart.promql import Scrape, evaluate, scraped

GROUPS = yaml.safe_load((Path(__file__).parents[2] / "charts" / "headwater" / "files" / "rules.yaml").read_text())
RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
Disturb = Callable[[OperatorMetrics], None]


class Operators:
    """One that acts, and one that waits to."""

    def __init__(self) -> None:
        self.acting, self.waiting = OperatorMetrics(), OperatorMetrics()
        self.acting.leader.set(1)
        self.acting.gateway_complete.set(1)
        self.acting.reconciles.labels("done").inc(1000)
        self.acting.reconciles.labels("retry").inc(1000)
        states = [{"type": "Ready", "status": "True"}, {"type": "Degraded", "status": "False"}]
        self.acting.tell("team", "fine", states)

    def scrape(self) -> Scrape:
        return scraped({"operator-a": self.acting.registry, "operator-b": self.waiting.registry})


def going_off(now: Scrape, before: Scrape) -> dict[str, list[dict[str, str]]]:
    """Labels of all alerts that there are, by their names."""
    values = {name: evaluate(rule["expr"], now, before) for name, rule in RULES.items()}
    return {name: [dict(labels) for labels in vector] for name, vector in values.items() if vector}


def degraded(metrics: OperatorMetrics) -> None:
    metrics.tell("team", "m", [{"type": "Degraded", "status": "True"}, {"type": "Ready", "status": "True"}])


POD = {"pod": "operator-a"}
CASES: list[tuple[str, Disturb, dict[str, str]]] = [
    (
        "HeadwaterModelDegraded",
        degraded,
        {"namespace": "team", "deployment": "m", "condition": "Degraded", **POD},
    ),
    ("HeadwaterNoOperatorActs", lambda metrics: metrics.leader.set(0), {}),
    ("HeadwaterReconcilesFail", lambda metrics: metrics.reconciles.labels("retry").inc(61), POD),
    ("HeadwaterOperatorLate", lambda metrics: metrics.queue_oldest.set(121), POD),
    ("HeadwaterOperatorLate", lambda metrics: metrics.loop_lag.set(1.5), POD),
    ("HeadwaterRouterReportMissing", lambda metrics: metrics.gateway_complete.set(0), POD),
]


def test_nothing_goes_off_while_all_is_well() -> None:
    operators = Operators()
    before = operators.scrape()
    operators.acting.reconciles.labels("done").inc(100_000)
    operators.acting.reconciles.labels("retry").inc(59)
    operators.acting.queue_oldest.set(119)
    assert going_off(operators.scrape(), before) == {}


@pytest.mark.parametrize(("alert", "disturb", "labels"), CASES)
def test_an_alert_goes_off_where_it_should_and_no_other(alert: str, disturb: Disturb, labels: dict[str, str]) -> None:
    operators = Operators()
    before = operators.scrape()
    disturb(operators.acting)
    assert going_off(operators.scrape(), before) == {alert: [labels]}
    told = " ".join(RULES[alert]["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", told)) <= labels.keys()


def test_an_operator_that_is_not_there_at_all_is_told_of() -> None:
    assert going_off([], []) == {"HeadwaterNoOperatorActs": [{}]}


def test_every_alert_has_a_case() -> None:
    assert {alert for alert, *_ in CASES} == RULES.keys()
