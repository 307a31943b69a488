"""What the admin API sees of the router, and does with it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from headwater_router.admin.models import (
    BreakerInfo,
    EndpointInfo,
    LoadInfo,
    ModelInfo,
    RankInfo,
    ShareInfo,
    SpeedInfo,
)
from headwater_router.dispatch.dispatch import Dispatch
from headwater_router.dispatch.dispatcher import Dispatcher
from headwater_router.dispatch.records import Candidate, DecisionRecord, FailureRecord
from headwater_router.endpoints.ejection import Reason
from headwater_router.endpoints.endpoint import Endpoint
from headwater_router.endpoints.total import sum_of_known, total
from headwater_router.index import PrefixIndex
from headwater_router.index.tokenizers import Tokenizers
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Target
from headwater_router.picker.classes import Kind
from headwater_router.picker.policies import Policies
from headwater_router.picker.speed import Speed
from headwater_router.picker.split import Split

_UNKNOWN: Final = Speed()


@dataclass(slots=True, eq=False)
class RouterControls:
    """`admin.controls.Controls` over the real thing."""

    dispatcher: Dispatcher
    policies: Policies
    index: PrefixIndex
    tokenizers: Tokenizers

    def endpoints(self) -> Sequence[EndpointInfo]:
        now = time.monotonic()
        self.dispatcher.settle(now)
        return [self._endpoint(each, now) for each in self.dispatcher.fleet]

    def models(self) -> Sequence[ModelInfo]:
        fleet = self.dispatcher.fleet
        return [
            ModelInfo(
                name=name,
                base=identity.base,
                adapter=bool(identity.adapter),
                deployments=[each.key for each in fleet.promised(name)]
                or sorted({each.spec.group.name for each, _ in fleet.serving(name)} - {""}),
                endpoints=len(fleet.serving(name)),
                ready_endpoints=sum(each.takes_requests for each, _ in fleet.serving(name)),
                tokenizer=_tokenizer(self.tokenizers.distrust(identity.base)),
                waiting=self._waiting(name),
                shares=[
                    share
                    for kind, split in sorted(self.dispatcher.spread.splits(name).items())
                    for share in _shares(kind, split)
                ],
            )
            for name in fleet.models
            if (identity := fleet.identity(name)) is not None
        ]

    def _waiting(self, model: str) -> int:
        deployments = {each.key for each in self.dispatcher.fleet.promised(model)}
        return sum(self.dispatcher.room.waiting_for(scope) for scope in deployments or (model,))

    def decisions(self) -> Sequence[DecisionRecord]:
        known = {target.id: (endpoint, target) for endpoint in self.dispatcher.fleet for target in endpoint.targets}
        return [self._decision(each, known) for each in self.dispatcher.decisions]

    def failures(self) -> Sequence[FailureRecord]:
        return [
            FailureRecord(
                when,
                each.call.request_id.decode("latin-1"),
                each.call.key_name,
                each.call.model,
                each.endpoint.name,
                each.outcome or Outcome.FAILED,
                each.reason,
            )
            for when, each in self.dispatcher.failures
        ]

    def cordon(self, endpoint: str, cordoned: bool) -> None:
        for each in self._called(endpoint):
            self.dispatcher.fleet.cordon(each, cordoned)

    def eject(self, endpoint: str, seconds: float) -> None:
        for each in self._called(endpoint):
            self.dispatcher.eject(each, Reason.ASKED, time.monotonic(), seconds)

    def reset(self, endpoint: str) -> None:
        for each in self._called(endpoint):
            each.breaker.reset()
            for target in each.targets:
                self.policies.forget_speed(target.id)

    def _called(self, endpoint: str) -> list[Endpoint]:
        return [each for each in self.dispatcher.fleet if each.id == endpoint]

    def _endpoint(self, endpoint: Endpoint, now: float) -> EndpointInfo:
        breaker, ranks = endpoint.breaker, [self._rank(target) for target in endpoint.targets]
        return EndpointInfo(
            id=endpoint.id,
            name=endpoint.name,
            url=endpoint.spec.url,
            backend=endpoint.spec.backend,
            deployment=endpoint.spec.whose,
            models=[model.name for model in endpoint.models],
            ready=endpoint.ready,
            reason=endpoint.reason,
            accepting=endpoint.accepting,
            cordoned=endpoint.cordoned,
            breaker=BreakerInfo(
                state=breaker.state(now), ejections=breaker.ejections, error_share=breaker.error_share(now)
            ),
            speed=max((each.speed for each in ranks), key=lambda speed: speed.samples),
            load=LoadInfo.model_validate(total(endpoint)),
            places=sum_of_known(each.places for each in ranks),
            full=all(each.full for each in ranks),
            cached_blocks=sum(each.cached_blocks for each in ranks),
            ranks=ranks if len(ranks) > 1 else [],
        )

    def _rank(self, target: Target) -> RankInfo:
        load, speed = target.load, self.policies.speed(target.id) or _UNKNOWN
        return RankInfo(
            rank=target.rank or 0,
            speed=SpeedInfo(
                samples=speed.samples,
                factor=speed.factor,
                seconds_per_step=speed.seconds_per_step,
                seconds_per_token=speed.seconds_per_token,
                seconds_per_answer=speed.seconds_per_answer,
            ),
            load=LoadInfo.model_validate(load),
            places=load.ceiling.places,
            full=not load.ceiling.has_room(load.there, load.kv_tokens),
            cached_blocks=self.index.blocks(target.id),
        )

    def _decision(self, dispatch: Dispatch, known: dict[str, tuple[Endpoint, Target]]) -> DecisionRecord:
        call, decision = dispatch.call, dispatch.decision
        age = time.monotonic() - dispatch.at
        return DecisionRecord(
            time.time() - age,
            call.request_id.decode("latin-1"),
            call.key_name,
            call.model,
            self.policies.name(self.dispatcher.fleet.deployment(dispatch.endpoint).policy),
            decision.label,
            dispatch.attempt,
            dispatch.endpoint.name,
            call.prompt.tokens,
            tuple(
                Candidate(
                    known[each.target_id][0].name,
                    (target := known[each.target_id][1]).rank,
                    each.cached_tokens,
                    each.predicted_ttft,
                    target.load.in_flight,
                    target.load.penalty,
                )
                for each in decision.candidates()
                if each.target_id in known
            ),
            dispatch.endpoint.spec.whose,
            call.kind,
            dispatch.why,
            decision.target.rank,
            f"{call.prompt.text_chain[0]:016x}" if call.prompt.text_chain else "",
        )


def _shares(kind: Kind, split: Split) -> Iterator[ShareInfo]:
    mean = split.mean()
    for name, place in split.places.items():
        cost = place.cost
        yield ShareInfo(
            kind=kind,
            deployment=name,
            share=place.share,
            most=split.most(name),
            cost=cost / mean if cost is not None and mean else None,
            cached_share=place.cached_share,
            answers=place.answers,
            lean=split.lean,
        )


def _tokenizer(distrust: str | None) -> str:
    match distrust:
        case None:
            return ""
        case "":
            return "in use"
        case reason:
            return f"not used: {reason}"
