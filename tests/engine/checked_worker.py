"""A worker without a model, whose memory can be checked, and the answers that it must give.

Into each KV slot it writes what belongs there: the hash of all tokens up to it. Before a step answers, every slot that
its requests would read must hold just that. So a block that leaks into another request, is evicted too early, or is
reused before it was written, is seen at once. The next token is a pure function of the tokens so far, so that each
answer is known beforehand, whatever the schedule was.

It knows requests by the steps that it is told only, each of which goes through msgpack first, as if it were far away.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate

import msgspec
import numpy as np

from headwater_engine.core.messages import Generate, TokenLogprobs
from headwater_engine.core.step import Judge, Result, Seat, Span, Step, TokenMasks
from headwater_engine.grammar.matcher import Cost
from headwater_engine.sampling.params import SamplingParams

SIZE = 4
EOS = 0
POISON = 99
"""A token that makes any step fail that computes it."""


def next_token(tokens: Sequence[int]) -> int:
    return hash(tuple(tokens)) % 7


def answered(tokens: Sequence[int], outputs: int, params: SamplingParams) -> int:
    """The token behind `tokens`, of which `outputs` are the answer's."""
    token = next_token(tokens)
    return 1 if token == EOS and outputs < params.min_tokens else token


def expected_output(prompt: list[int], params: SamplingParams, max_model_len: int) -> list[int]:
    tokens = list(prompt)
    while True:
        tokens.append(answered(tokens, len(tokens) - len(prompt), params))
        made = len(tokens) - len(prompt)
        ends = tokens[-1] == EOS and not params.ignore_eos and made >= params.min_tokens
        if ends or made >= params.max_tokens or len(tokens) >= max_model_len:
            return tokens[len(prompt) :]


def contents_of(tokens: Sequence[int], seed: int) -> list[int]:
    """What belongs into the slot of each token. The seed stands for the cache salt, of which workers know nothing."""
    return list(accumulate(tokens, lambda before, token: hash((before, token)), initial=hash(seed)))[1:]


def expected_prompt_logprobs(message: Generate) -> list[TokenLogprobs | None]:
    contents = contents_of(message.prompt, message.params.seed)
    return [None, *map(_score, message.prompt[1:], contents)]


def _score(token: int, contents: int) -> TokenLogprobs:
    return TokenLogprobs(token, contents % 1000, 1, [])


def generate(request_id: str, prompt: list[int], *, priority: int = 0, salt: str = "", **params: object) -> Generate:
    params = {"max_tokens": 5, "eos_token_ids": (EOS,), "seed": hash(salt)} | params
    return Generate(
        id=request_id,
        prompt=prompt,
        params=SamplingParams(**params),  # type: ignore[arg-type]
        priority=priority,
        cache_salt=salt,
    )


class StubMatcher:
    """Of a grammar that allows what a request's answer must be, and leaves one way now and then."""

    ended = False
    late = False
    asked = True
    cost = Cost()

    def __init__(self, message: Generate, *, tardy: bool = False) -> None:
        """`tardy`: some of its masks are late."""
        self._message = message
        self._tokens = list(message.prompt)
        self._tardy = tardy
        self._looks = 0

    @property
    def made(self) -> bool:
        self._looks += 1
        return not self._tardy or hash((2, *self._tokens, self._looks)) % 3 > 0

    def mask(self) -> np.ndarray:
        return np.full(1, -1, dtype=np.int32)

    def drop(self) -> None:
        pass

    def forced(self) -> list[int]:
        count = max(0, hash((1, *self._tokens)) % 16 - 6)
        tokens = list(self._tokens)
        for _ in range(count):
            tokens.append(self._next(tokens))
        return tokens[len(self._tokens) :]

    def advance(self, token: int) -> None:
        assert token == self._next(self._tokens)
        self._tokens.append(token)

    def _next(self, tokens: list[int]) -> int:
        return answered(tokens, len(tokens) - len(self._message.prompt), self._message.params)


class Place(StrEnum):
    """Where a step can fail."""

    LAUNCH = "launch"
    SAMPLE = "sample"
    WAIT = "wait"


@dataclass(slots=True)
class Row:
    """What is known of who sits on a seat."""

    seat: Seat
    table: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.seat.tokens + self.drafts

    def slot(self, position: int) -> int:
        return self.table[position // SIZE] * SIZE + position % SIZE


@dataclass(slots=True)
class Later:
    """A result, or on waiting the news that there is none."""

    worker: "CheckedWorker"
    step: Step
    result: Result

    def wait(self) -> Result:
        self.worker.fail_at(Place.WAIT, self.step)
        self.worker.under_way.remove(self.step)
        return self.result


class CheckedWorker:
    """Fails at `poisoned` when a step computes POISON, and once where `fail_next` says."""

    def __init__(self, blocks: int, poisoned: Place = Place.LAUNCH) -> None:
        self.slots: list[int | None] = [None] * (blocks * SIZE)
        self.rows: dict[int, Row] = {}
        self.under_way: list[Step] = []
        self.poisoned = poisoned
        self.fail_next: Place | None = None
        self.steps = 0
        self.computed = 0
        self.largest_batch = 0
        self.last_failed: Step | None = None

    def launch(self, step: Step) -> None:
        step = msgspec.msgpack.decode(msgspec.msgpack.encode(step), type=Step)
        assert step.under_way == len(self.under_way), "it says what is known otherwise than it is"
        self._take(step)
        self.steps += 1
        size = sum(span.count for span in step.spans)
        self.computed += size
        self.largest_batch = max(self.largest_batch, size)
        self.under_way.append(step)
        for span in step.spans:
            row = self.rows[span.seat]
            contents = contents_of(row.tokens, row.seat.sampling.seed)
            for position in range(span.start, span.start + span.count):
                self.slots[row.slot(position)] = contents[position]
        self.fail_at(Place.LAUNCH, step)

    def sample(self, masks: TokenMasks | None = None, judge: Judge | None = None) -> Later:
        assert judge is None
        step = self.under_way[-1]
        silent = step.silent(masks)
        assert (masks is None) == (not step.masked)
        assert masks is None or set(masks.seats) <= set(step.masked)
        self.fail_at(Place.SAMPLE, step)
        result = Result([])
        for place, span in enumerate(step.spans):
            self._check(span)
            if span.scored:
                result.prompt_logprobs[place] = self._scores(span)
            result.tokens.append([] if span.seat in silent else self._answer(span))
        return Later(self, step, result)

    def fail_at(self, place: Place, step: Step) -> None:
        poisoned = self.poisoned is place and any(POISON in self._computes(span) for span in step.spans)
        if not poisoned and self.fail_next is not place:
            return
        self.fail_next = None
        self.last_failed = step
        # Rubbish is left behind, also by what was launched on top of it.
        while step in self.under_way:
            failed = self.under_way.pop()
            for span in failed.spans:
                for position in range(span.start, span.start + span.count):
                    self.slots[self.rows[span.seat].slot(position)] = None
        raise RuntimeError("boom")

    def _computes(self, span: Span) -> list[int]:
        return self.rows[span.seat].tokens[span.start : span.start + span.count]

    def _take(self, step: Step) -> None:
        for index in step.left:
            assert self.rows.pop(index)
        for seat in step.seated:
            self.rows[seat.index] = Row(seat)
        for index, blocks in step.blocks:
            self.rows[index].table += blocks
        for index, tokens in step.given:
            self.rows[index].seat.tokens += tokens
            self.rows[index].seat.outputs += len(tokens)
        for index, drafts in step.drafts:
            self.rows[index].drafts = drafts

    def _check(self, span: Span) -> None:
        row, end = self.rows[span.seat], span.start + span.count
        found = [self.slots[row.slot(position)] for position in range(end)]
        assert found == contents_of(row.tokens, row.seat.sampling.seed)[:end], "a wrong KV block"

    def _scores(self, span: Span) -> list[TokenLogprobs]:
        tokens, seed = self.rows[span.seat].tokens, self.rows[span.seat].seat.sampling.seed
        scored = range(span.start, span.start + span.scored)
        return [_score(tokens[position + 1], contents_of(tokens, seed)[position]) for position in scored]

    def _answer(self, span: Span) -> list[int]:
        """Drafts as far as they are right, and one token more."""
        seat, drafts = self.rows[span.seat].seat, self.rows[span.seat].drafts
        self.rows[span.seat].drafts = []
        if not span.sampled:
            return []
        assert span.sampled == 1 + len(drafts)
        assert span.start + span.count == len(seat.tokens) + len(drafts)
        tokens: list[int] = []
        for guess in [*drafts, None]:
            tokens.append(answered(seat.tokens, seat.outputs, seat.sampling))
            seat.tokens.append(tokens[-1])
            seat.outputs += 1
            if tokens[-1] != guess:
                break
        return tokens
