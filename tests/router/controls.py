"""A router as the admin API sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headwater_router.admin.models import BreakerInfo, EndpointInfo, LoadInfo, ModelInfo, SpeedInfo
from headwater_router.dispatch.records import Candidate, DecisionRecord, FailureRecord
from headwater_router.endpoints.breaker import BreakerState
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Label


def endpoint(id: str, name: str, **fields: Any) -> EndpointInfo:
    given: dict[str, Any] = {
        "id": id, "name": name, "url": f"http://{name}:8000", "backend": "vllm", "deployment": "", "models": ["m"],
        "ready": True, "reason": "", "accepting": True, "cordoned": False, "cached_blocks": 12,
        "breaker": BreakerInfo(state=BreakerState.CLOSED, ejections=0, error_share=0.0),
        "speed": SpeedInfo(
            samples=5, factor=1.0, seconds_per_step=0.02, seconds_per_token=1e-4, seconds_per_answer=0.01
        ),
        "load": load(0), "places": 64, "full": False, "ranks": [],
    }  # fmt: skip
    return EndpointInfo(**given | fields)


def load(in_flight: int) -> LoadInfo:
    return LoadInfo(
        in_flight=in_flight, penalty=0, prefill_tokens=0,
        reported_running=1, reported_waiting=None, reported_cache_usage=0.5,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class FakePage:
    status: int
    content_type: str
    body: bytes


class FakePages:
    status = 200

    def ready(self) -> FakePage:
        return FakePage(self.status, "application/json", b'{"status":"ready"}')

    def prometheus(self) -> FakePage:
        return FakePage(200, "text/plain; version=1.0.0", b"headwater_router_redis_connected 0.0\n")

    def load(self) -> FakePage:
        return FakePage(200, "text/plain; version=1.0.0", b"headwater_router_deployment_held 0.0\n")

    def version(self) -> FakePage:
        return FakePage(200, "application/json", b'{"version":"1.2.3"}')


class FakeControls:
    """Two endpoints, and a list of what was done to them."""

    def __init__(self) -> None:
        self.known = {each.id: each for each in (endpoint("uid-1", "a"), endpoint("uid-2", "b"))}
        self.done: list[tuple[Any, ...]] = []
        self.recent_decisions: list[DecisionRecord] = []
        self.recent_failures: list[FailureRecord] = []

    def change(self, id: str, **fields: Any) -> None:
        self.known[id] = self.known[id].model_copy(update=fields)

    def endpoints(self) -> Sequence[EndpointInfo]:
        return list(self.known.values())

    def models(self) -> Sequence[ModelInfo]:
        return [
            ModelInfo(
                name="m", base="m", adapter=False, deployments=["ns/m"], endpoints=2, ready_endpoints=1, waiting=0
            )
        ]  # fmt: skip

    def decisions(self) -> Sequence[DecisionRecord]:
        return self.recent_decisions

    def failures(self) -> Sequence[FailureRecord]:
        return self.recent_failures

    def cordon(self, endpoint: str, cordoned: bool) -> None:
        self.done.append(("cordon", endpoint, cordoned))
        self.change(endpoint, cordoned=cordoned)

    def eject(self, endpoint: str, seconds: float) -> None:
        self.done.append(("eject", endpoint, seconds))

    def reset(self, endpoint: str) -> None:
        self.done.append(("reset", endpoint))


def decision(number: int) -> DecisionRecord:
    return DecisionRecord(
        time=1000.0 + number, request_id=str(number), key="team-a", model="m", policy="prefix", label=Label.EXACT,
        attempt=1, endpoint="a", prompt_tokens=100,
        candidates=(Candidate("a", None, 64, 0.01, 1, 0), Candidate("b", 1, 0, None, 0, 2)),
    )  # fmt: skip


def failure(number: int) -> FailureRecord:
    return FailureRecord(1000.0 + number, str(number), "", "m", "a", Outcome.LOST, "Connection reset by peer")
