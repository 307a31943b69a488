"""The gateway is asked again and again, who has to be reconciled is told, and silence is never taken for rest."""

import asyncio
import functools
from types import SimpleNamespace

import httpx
import pytest

from benchmarks.virtual_clock import run
from headwater.resource import Autoscaling
from headwater_operator.autoscaling import follow as scaling
from headwater_operator.autoscaling.decide import ScaleDecision
from headwater_operator.autoscaling.follow import Scaling
from headwater_operator.cluster.api import ApiError
from headwater_operator.cluster.kinds import Key, Object
from headwater_operator.config import OperatorSettings
from headwater_operator.metrics import OperatorMetrics
from tests.operator.fake_api import START, FakeCluster
from tests.operator.test_gateway import page, split

CHAT = Key("team", "chat")


def rule(**fields: object) -> Autoscaling:
    return Autoscaling.model_validate({"min": 1, "max": 9, "inFlightPerReplica": 1, **fields}, strict=False)


def endpoints(*addresses: str) -> Object:
    metadata = {"name": "router-1", "namespace": "headwater", "labels": {"kubernetes.io/service-name": "router"}}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": [each], "conditions": {"serving": True}} for each in addresses],
    }


class Gateway:
    """Routers, the loop that asks them, and a clock that passes only while that waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
        self.pages: dict[str, str | None] = {"10.0.0.1": page()}
        """By address; None does not answer."""
        self.asked: list[str] = []
        self.added: list[Key] = []
        self.cluster = FakeCluster()
        self.cluster.add(endpoints(*self.pages))
        self.metrics = OperatorMetrics()
        given = {"gateway_service": "headwater/router", "gateway_interval": 2, **settings}
        self.scaling = Scaling(OperatorSettings.model_validate(given), self.cluster, self.metrics)
        self.seconds = 0.0
        start = START.timestamp()
        clock = SimpleNamespace(monotonic=lambda: self.seconds, time=lambda: start + self.seconds)
        monkeypatch.setattr(scaling, "time", clock)
        client = functools.partial(httpx.AsyncClient, transport=httpx.MockTransport(self._answer))
        monkeypatch.setattr(scaling, "httpx", SimpleNamespace(AsyncClient=client))

        async def sleep(seconds: float) -> None:
            self.seconds += seconds
            if self.seconds >= self._until:
                raise asyncio.CancelledError

        monkeypatch.setattr(scaling, "asyncio", SimpleNamespace(sleep=sleep))
        self._until = 0.0

    def passes(self, seconds: float) -> list[Key]:
        """Who was told of meanwhile."""
        self._until = self.seconds + seconds
        self.added.clear()
        with pytest.raises(asyncio.CancelledError):
            run(self.scaling.run(self.added.append))
        return self.added

    def lookups(self) -> int:
        return sum(call.kind == "EndpointSlice" for call in self.cluster.calls)

    def follow(self, current: int = 1, **fields: object) -> ScaleDecision:
        return self.scaling.follow(CHAT, rule(**fields), current, None)

    @property
    def complete(self) -> float | None:
        return self.metrics.registry.get_sample_value("headwater_operator_gateway_complete")

    def _answer(self, request: httpx.Request) -> httpx.Response:
        assert request.url.params.get_list("name[]"), "not for all that they know"
        self.asked.append(str(request.url.copy_with(query=None)))
        text = self.pages[request.url.host]
        if text is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, text=text)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Gateway:
    return Gateway(monkeypatch)


def test_every_router_is_asked_in_every_interval(gateway: Gateway) -> None:
    gateway.pages["10.0.0.2"] = page()
    gateway.cluster.write_over(endpoints(*gateway.pages))
    gateway.passes(6)
    assert gateway.asked == ["http://10.0.0.1:8080/metrics", "http://10.0.0.2:8080/metrics"] * 3
    assert gateway.complete == 1


def test_which_routers_there_are_is_looked_up_now_and_then(gateway: Gateway) -> None:
    gateway.passes(60)
    assert 4 <= gateway.lookups() <= 6
    gateway.cluster.write_over(endpoints("10.0.0.2"))
    gateway.pages["10.0.0.2"] = page()
    gateway.passes(14)
    assert gateway.asked[-1] == "http://10.0.0.2:8080/metrics"


def test_an_api_server_that_does_not_answer_is_asked_again_and_nothing_is_scaled_down(gateway: Gateway) -> None:
    gateway.follow(3, scaleDownDelay="2s", stableWindow="4s", panicWindow="2s")
    gateway.cluster.refuses = lambda call: ApiError(503, "Busy", "later")
    assert gateway.passes(60) == []
    assert gateway.complete == 0
    gateway.cluster.refuses = lambda call: None
    gateway.passes(4)
    assert gateway.complete == 1


def test_without_a_gateway_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(monkeypatch, gateway_service=None)
    assert gateway.follow(3).desired == 3
    run(gateway.scaling.run(gateway.added.append))
    assert gateway.asked == [] and gateway.cluster.calls == []


def test_more_load_asks_for_a_look_and_the_same_for_none(gateway: Gateway) -> None:
    gateway.pages["10.0.0.1"] = page(in_flight=4)
    gateway.passes(2)
    gateway.follow(1)
    assert CHAT in gateway.passes(80)
    assert gateway.follow().desired == 4
    assert gateway.passes(120) == []


def test_the_sum_over_the_routers_counts(gateway: Gateway) -> None:
    gateway.pages = {"10.0.0.1": page(in_flight=2), "10.0.0.2": page(in_flight=1, held=2)}
    gateway.cluster.write_over(endpoints(*gateway.pages))
    gateway.follow(1)
    gateway.passes(80)
    assert gateway.follow().desired == 5


def test_what_is_held_wakes_at_once(gateway: Gateway) -> None:
    gateway.follow(0, min=0)
    assert CHAT in gateway.passes(2), "that its endpoints are ready is news"
    gateway.pages["10.0.0.1"] = page(held=1)
    assert gateway.passes(2) == [CHAT]
    assert gateway.follow(min=0).desired == 1


def test_fewer_only_after_the_delay(gateway: Gateway) -> None:
    gateway.follow(3, scaleDownDelay="60s", stableWindow="10s", panicWindow="2s")
    gateway.passes(60)
    assert gateway.follow(scaleDownDelay="60s", stableWindow="10s", panicWindow="2s").desired == 3
    gateway.passes(20)
    assert gateway.follow(scaleDownDelay="60s", stableWindow="10s", panicWindow="2s").desired == 1


def test_what_is_to_be_written_down_asks_for_a_look_now_and_then(gateway: Gateway) -> None:
    gateway.follow(3, scaleDownDelay="1h")
    gateway.passes(200)
    told = gateway.passes(600)
    assert set(told) == {CHAT} and 5 <= len(told) <= 12, "for how long fewer have been enough, by the minute"
    assert gateway.follow(scaleDownDelay="1h").desired == 3


@pytest.mark.parametrize("silent", [None, "", page(name="other")], ids=["no answer", "empty", "another's"])
def test_silence_is_never_taken_for_rest(gateway: Gateway, silent: str | None) -> None:
    gateway.pages["10.0.0.1"] = page(in_flight=3)
    gateway.follow(3, scaleDownDelay="2s", stableWindow="4s", panicWindow="2s")
    gateway.passes(20)
    gateway.pages["10.0.0.1"] = silent
    gateway.passes(3600)
    assert gateway.follow(scaleDownDelay="2s", stableWindow="4s", panicWindow="2s").desired == 3


def test_one_of_two_routers_that_is_silent_holds_up_scaling_down(gateway: Gateway) -> None:
    gateway.pages = {"10.0.0.1": page(), "10.0.0.2": None}
    gateway.cluster.write_over(endpoints(*gateway.pages))
    gateway.follow(3, scaleDownDelay="2s", stableWindow="4s", panicWindow="2s")
    gateway.passes(600)
    assert gateway.follow(scaleDownDelay="2s", stableWindow="4s", panicWindow="2s").desired == 3
    assert gateway.complete == 0


def test_shares_are_told_when_they_have_moved(gateway: Gateway) -> None:
    gateway.passes(2)
    assert gateway.scaling.shares(CHAT, None) is None
    for percent, told, news in ((52, 50, 1), (54, 50, 0), (56, 55, 1), (51, 55, 0), (0.4, 0, 1), (100, 100, 1)):
        gateway.pages["10.0.0.1"] = page() + split(percent)
        assert gateway.passes(4) == [CHAT] * news
        assert gateway.scaling.shares(CHAT, None) == [{"name": "m", "class": "plain", "percent": told}]
    gateway.pages["10.0.0.1"] = page()
    assert gateway.passes(2) == [CHAT]
    assert gateway.scaling.shares(CHAT, None) is None


def test_shares_stay_while_a_router_is_silent_or_was_not_asked_yet(gateway: Gateway) -> None:
    before = [{"name": "m", "class": "plain", "percent": 30}]
    assert gateway.scaling.shares(CHAT, before) == before
    gateway.pages["10.0.0.1"] = page() + split(70)
    gateway.passes(2)
    gateway.pages["10.0.0.1"] = None
    gateway.passes(20)
    assert gateway.scaling.shares(CHAT, before) == [{"name": "m", "class": "plain", "percent": 70}]


def test_it_is_routable_when_every_router_has_an_endpoint(gateway: Gateway) -> None:
    assert gateway.scaling.routable(CHAT, None) is None
    assert gateway.passes(2) == [CHAT]
    assert gateway.scaling.routable(CHAT, None) is True
    gateway.pages = {"10.0.0.1": page(ready=1), "10.0.0.2": page(ready=0)}
    gateway.cluster.write_over(endpoints(*gateway.pages))
    assert gateway.passes(14) == [CHAT]
    assert gateway.scaling.routable(CHAT, None) is False
    gateway.pages = {"10.0.0.1": None, "10.0.0.2": None}
    assert gateway.passes(2) == [CHAT]
    assert gateway.scaling.routable(CHAT, None) is None


def test_what_was_routable_before_holds_until_the_first_answer(gateway: Gateway) -> None:
    assert gateway.scaling.routable(CHAT, True) is True
    assert gateway.scaling.routable(CHAT, False) is False
    gateway.pages["10.0.0.1"] = page(name="other")
    gateway.passes(2)
    assert gateway.scaling.routable(CHAT, True) is None


def test_the_load_of_pods_is_known_as_of_the_last_report(gateway: Gateway) -> None:
    assert gateway.scaling.pods == {}
    gateway.pages["10.0.0.1"] = page(pods={"a": 3, "b": 0})
    gateway.passes(2)
    assert gateway.scaling.pods == {"a": 3, "b": 0}


def test_what_is_followed_again_goes_on_from_the_decision(gateway: Gateway) -> None:
    assert gateway.follow(4).desired == 4
    assert gateway.follow(1).desired == 4, "what the workload asks for counts the first time"
    gateway.scaling.forget(CHAT)
    assert gateway.follow(1).desired == 1


@pytest.mark.parametrize("current, desired", [(0, 2), (3, 3), (50, 5)])
def test_the_bounds_count_from_the_first(gateway: Gateway, current: int, desired: int) -> None:
    assert gateway.follow(current, min=2, max=5).desired == desired


def test_forgetting_what_was_never_followed_is_fine(gateway: Gateway) -> None:
    gateway.scaling.forget(CHAT)
