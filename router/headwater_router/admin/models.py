"""What the admin API answers with. The text under a field is its description on the API's page."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, computed_field

from headwater_router.endpoints.breaker import BreakerState
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Label
from headwater_router.picker.classes import Kind
from headwater_router.picker.split import Lean, Why


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, from_attributes=True, use_attribute_docstrings=True)


# Endpoints


class State(StrEnum):
    """Why an endpoint gets requests or not, in one word: the first of these that holds."""

    CORDONED = "cordoned"
    LEAVING = "leaving"
    NOT_READY = "not_ready"
    EJECTED = "ejected"
    READY = "ready"


class BreakerInfo(_Model):
    state: BreakerState
    ejections: int
    """Since the endpoint is known."""
    error_share: float
    """Of its latest requests, 0 to 1."""


class SpeedInfo(_Model):
    samples: int
    """Answers, and first tokens, that it was learned from; 0: these are the defaults."""
    factor: float
    """How much slower it is than its deployment's others are taken to be; 1 for most."""
    seconds_per_step: float
    """Of its engine, whatever is in it; ..."""
    seconds_per_token: float
    """... and for each prompt token that is computed in it, ..."""
    seconds_per_answer: float
    """... and for each answer that gets a token in it."""


class LoadInfo(_Model):
    in_flight: int
    """Requests of this router whose answers have not ended."""
    penalty: int
    """Requests that it turned down or failed lately."""
    prefill_tokens: int
    """Uncached prompt tokens sent there whose first token has not come."""
    reported_running: int | None
    """As the endpoint itself says; null where it does not. So for the next two."""
    reported_waiting: int | None
    reported_cache_usage: float | None


class RankInfo(_Model):
    rank: int
    """Its number, by which requests are sent to it."""
    speed: SpeedInfo
    load: LoadInfo
    places: int | None
    """As with endpoints. So for the next two."""
    full: bool
    cached_blocks: int


class EndpointInfo(_Model):
    id: str
    """Unique, and the same as long as the endpoint is known."""
    name: str
    url: str
    backend: str
    deployment: str
    """NAMESPACE/NAME of its ModelDeployment; empty where flags or a file name the endpoint."""
    models: list[str]
    ready: bool
    """What its probe says."""
    reason: str
    """Why it is not ready; empty where it is."""
    accepting: bool
    """Whether Kubernetes lets requests go there."""
    cordoned: bool
    breaker: BreakerInfo
    speed: SpeedInfo
    """Where it has `ranks`, that of the one that most is known of."""
    load: LoadInfo
    """Of all `ranks` together. So for what follows."""
    places: int | None
    """Requests that it runs at once; null where that is not known."""
    full: bool
    """Whether it has no room for one more now."""
    cached_blocks: int
    """That the prefix index believes in its cache."""
    ranks: list[RankInfo]
    """Its data-parallel engines, where requests are sent to each by its number; else none."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def state(self) -> State:
        if self.cordoned:
            return State.CORDONED
        if not self.accepting:
            return State.LEAVING
        if not self.ready:
            return State.NOT_READY
        return State.EJECTED if self.breaker.state is BreakerState.OPEN else State.READY


class Drain(_Model):
    drained: bool
    """Whether nothing of this router runs there any more."""
    endpoint: EndpointInfo


# Decisions and failures


class CandidateInfo(_Model):
    endpoint: str
    rank: int | None
    """The data-parallel engine behind it; null: the endpoint as a whole."""
    cached_tokens: int
    predicted_ttft: float | None
    in_flight: int
    penalty: int


class DecisionInfo(_Model):
    time: float
    """Seconds since the epoch."""
    request_id: str
    key: str
    """The name of the client's API key."""
    model: str
    policy: str
    label: Label
    attempt: int
    """1 is the first."""
    endpoint: str
    prompt_tokens: int
    candidates: list[CandidateInfo]
    """The chosen one first, then the best of the others."""
    deployment: str
    """Of the endpoint; empty where it belongs to none."""
    kind: Kind | None
    """The class of the request; null where nobody asked for it."""
    why: Why
    """It went to that deployment."""
    rank: int | None
    """The data-parallel engine that it was sent to; null: the endpoint as a whole."""
    prefix: str
    """Requests whose prompts begin alike have the same: a hash of the first block. Empty without a whole one."""


class FailureInfo(_Model):
    time: float
    request_id: str
    key: str
    model: str
    endpoint: str
    """Empty where the request was sent to none."""
    outcome: Outcome
    reason: str


# Models, keys, settings


class ShareInfo(_Model):
    """Of one class of requests, at one deployment."""

    kind: Kind
    deployment: str
    share: float
    """Of the class, 0 to 1."""
    most: float
    """That it may have, by its weight."""
    cost: float | None
    """Of a token, over the mean of all deployments that share the class: 1.2 is a fifth dearer. Null: not known yet."""
    cached_share: float | None
    """Of the prompts' tokens, as its answers say."""
    answers: float
    """By which these are known; older ones count for less."""
    lean: Lean
    """`leaning`: one of the deployments was dearer at the last look; if it is again, shares move."""


class ModelInfo(_Model):
    name: str
    base: str
    """The name that stands for the same weights."""
    adapter: bool
    deployments: list[str]
    endpoints: int
    ready_endpoints: int
    waiting: int
    """Requests of its deployments that wait for an endpoint to get ready or to have room."""
    tokenizer: str = ""
    """Whether the router's own tokenizer of it is in use, or why not. Empty: there is none."""
    shares: list[ShareInfo] = []
    """As they were found, where deployments say `share: Auto`."""


class KeyInfo(_Model):
    name: str
    disabled: bool
    models: list[str]
    requests_per_minute: int | None
    requests_left: int | None
    """That may be sent at once now; null without a limit."""
    max_concurrent: int | None
    running: int
    own_cache_salt: bool
    admitted: int
    """Requests since the start. So for the next three."""
    refused_rate: int
    refused_concurrency: int
    refused_model: int


class KeysInfo(_Model):
    checked: bool
    """Whether clients need a key at all."""
    refused: str | None
    """Why the file as it is now is not in force; null while it is."""
    keys: list[KeyInfo]
