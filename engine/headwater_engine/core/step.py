"""What the engine tells the worker that runs the model, and what comes back.

The scheduler decides, a worker computes. Between them goes a `Step`: numbers only, so that it can be sent to another
process or machine as it is. A worker has a table with a row for each *seat*. A request takes a seat for as long as it
runs; the worker is told its tokens once, its blocks as they come, and from then on only which positions to compute.

Steps run in the order of their numbers, one behind another. Two workers that got the same steps hold the same rows.
What a step says of seats and blocks counts also where the step fails afterwards.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.sampling.params import SamplingParams


class Seat(msgspec.Struct):
    """A request sits down, or sits down anew: all that the seat's row held before is forgotten."""

    index: int
    tokens: list[int]
    """All that are known: the prompt, and what there is of the answer."""
    outputs: int
    """How many of them, at the end, are the answer's: more than 0 where it sat before."""
    sampling: SamplingParams
    masked: bool = False
    """Whether `TokenMasks` come for each of its tokens."""


class Span(msgspec.Struct, array_like=True):
    """The positions `start` to `start + count - 1` of a seat are computed.

    The first of them may be that of a token that only the worker knows: the one that the step before gave.
    """

    seat: int
    start: int
    count: int
    sampled: int
    """Of how many positions, at its end, the logits give tokens: 0, 1, or 1 + drafts."""
    scored: int
    """Of how many positions, from its start, the log-probability of the prompt token behind is wanted."""


class Step(msgspec.Struct, tag="step"):
    """What to do, in this order."""

    number: int
    left: list[int]
    """Seats that are free."""
    seated: list[Seat]
    blocks: list[tuple[int, list[int]]]
    """(seat, KV blocks behind those that it has)."""
    drafts: list[tuple[int, list[int]]]
    """(seat, guesses of the tokens behind the last known one, which are the last ones of the seat's span)."""
    spans: list[Span]
    masked: list[int] = []
    """Seats that give tokens in this step, of which `sample` is told which ones may come."""
    given: list[tuple[int, list[int]]] = []
    """(seat, tokens of its answer behind those that it has, which a grammar left no choice of: nobody drew them)."""
    under_way: int = 0
    """Steps before this one whose results were not known when it was planned: the last ones. All others must be known
    to whoever takes it in. Tokens and drafts go behind the known ones, and a seat may pass to somebody else."""

    def silent(self, masks: "TokenMasks | None", judge: "Judge | None" = None) -> set[int]:
        """Of `masked`, the seats that give no token after all, whatever the judge says."""
        silent = set(self.masked).difference(masks.seats if masks is not None else ())
        return silent if judge is None else silent - judge.seats


class TokenMasks(msgspec.Struct, tag="masks"):
    """Which tokens may come next. A seat of `Step.masked` that has none here gives no token: its request is gone, what
    follows is known meanwhile, or the mask is late."""

    seats: list[int]
    bits: memoryview
    """[seats, ceil(vocabulary / 32)] int32, little-endian, as in `kernels.interface.Masks`. Valid until the step
    is sampled."""

    def array(self) -> np.ndarray:
        """[seats, words] int32"""
        return np.frombuffer(self.bits, np.int32).reshape(len(self.seats), -1)


class Refused(NamedTuple):
    """Tokens that must not come."""

    seats: Set[int]
    masks: TokenMasks
    """What may come instead. Who of them has none here gives no token."""


@dataclass(slots=True)
class Judge:
    """Looks at tokens that were drawn as if all might come, since nobody had made a mask."""

    seats: Set[int]
    """Of `Step.masked`: whose tokens it looks at."""
    look: Callable[[Mapping[int, int]], Refused]
    """Is told the token of each of these seats. -1: none could be drawn without a mask."""


@dataclass(slots=True)
class Result:
    """What a step gave. Keys are places in `Step.spans`."""

    tokens: list[list[int]]
    """For each span the tokens that follow: none, one, or one more than there are drafts that proved right."""
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    """Beside the tokens, where they are asked for."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    """`Span.scored` of them."""
    vectors: dict[int, bytes] = field(default_factory=dict)
    """Instead of tokens, where a worker makes vectors: of those that are complete, float32."""
    errors: dict[int, str] = field(default_factory=dict)
    """Instead of tokens: what is wrong with this request, and with no other."""


class Pending(Protocol):
    """A result on its way from the device."""

    def wait(self) -> Result: ...


class Worker(Protocol):
    """One rank. Any call may raise: the step has failed then, and `launch` of the next one is what follows.

    DeviceError is the exception: nothing follows that.
    """

    def launch(self, step: Step) -> None:
        """Take in seats and blocks, and queue the model's forward pass. Does not wait for the device."""

    def sample(self, masks: TokenMasks | None = None, judge: Judge | None = None) -> Pending:
        """Queue the choice of tokens for the step that was launched last, once for each.

        `masks`: where that step has `masked` seats. `judge`: of those that have no mask, for workers of which the
        engine knows that they can ask one.
        """
