"""What the prefix policy has learned: costs of steps by deployment and model, lengths of answers by application."""

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from headwater_router.picker.base import Prompt, Target
from headwater_router.picker.known import Known, Routed
from headwater_router.picker.speed import Lengths, Pace, Stretch, liken
from headwater_router.picker.targets import Targets

_MEAN_SECONDS: Final = 1.0
"""For so long the mean speed of a deployment's endpoints is taken not to change."""
MOST_TOKENS: Final = 1 << 20
"""Of an answer; an engine that says more is not believed."""


MOST_LESSONS: Final = 64
"""That wait for other routers; the latest ones."""


class Lesson(Struct, frozen=True):
    """A stretch of time at an endpoint, from which other routers learn as from their own."""

    deployment: str
    model: str
    target: Target
    stretch: Stretch
    seconds: float


class Learned:
    def __init__(self, known: Mapping[str, Known]) -> None:
        """`known`: the endpoints, by their ids."""
        self._known = known
        self.lessons: deque[Lesson] = deque(maxlen=MOST_LESSONS)
        """Of what was learned here, for others."""
        self._paces: dict[tuple[str, str], Pace] = {}
        self._lengths: defaultdict[str, Lengths] = defaultdict(Lengths)
        """By model."""

    def pace(self, targets: Targets, prompt: Prompt, now: float) -> Pace:
        key = targets.deployment, prompt.model
        pace = self._paces.get(key)
        if pace is None:
            pace = self._paces[key] = Pace()
        if not now - pace.usual_at < _MEAN_SECONDS:
            self._see_usual(pace, targets, now)
        return pace

    def output(self, prompt: Prompt) -> float:
        """Tokens that its answer is expected to have."""
        return self._lengths[prompt.model].expected(_beginning(prompt))

    def learn(self, found: Routed, stretch: Stretch, seconds: float, now: float) -> None:
        lesson = Lesson(found.targets.deployment, found.prompt.model, found.target, stretch, seconds)
        _learn(lesson, found.chosen.known, found.pace, now)
        self.lessons.append(lesson)

    def take(self, lesson: Lesson, now: float) -> None:
        """From another router. Of what this one has sent nothing to, it learns nothing."""
        known, pace = self._known.get(lesson.target.id), self._paces.get((lesson.deployment, lesson.model))
        if known is not None and pace is not None:
            _learn(lesson, known, pace, now)

    def learn_rest(self, found: Routed, output_tokens: int, now: float) -> None:
        """From its first token to its last; of one that is not streamed, all of it."""
        if output_tokens > MOST_TOKENS:
            return
        self._lengths[found.prompt.model].learn(_beginning(found.prompt), output_tokens)
        since, until = found.since, found.chosen.known.sums(found.target.load, now)
        seconds, steps = now - since.at, output_tokens - 1
        if seconds <= 0 or (found.prompt.streamed and (not steps or found.prefilling)):
            return
        # It counted itself, where it was counted among the answers.
        answers = max(0.0, (until.answers - since.answers) / seconds - (not found.prefilling))
        context = max(0.0, (until.context - since.context) / seconds - found.prompt.tokens)
        tokens = until.tokens - since.tokens
        if found.prompt.streamed:
            stretch = Stretch(0.0, steps, answers * steps, context * steps, tokens)
        else:
            shared = steps + 1
            stretch = Stretch(1.0, steps, answers * shared, context * shared, max(tokens, found.until_first.tokens))
        self.learn(found, stretch, seconds, now)

    def _see_usual(self, pace: Pace, targets: Targets, now: float) -> None:
        """What is assumed of an endpoint that has not answered lately: to be like those that have."""
        pace.usual_at = now
        known = [each for target in targets.all if (each := self._known.get(target.id)) is not None]
        fresh = [each.factor for each in known if now <= each.fresh_until and each.factor.samples]
        liken(each for each in fresh if each.own)
        factors = [each.beside(pace.usual) for each in fresh]
        if factors:
            pace.usual = sum(factors) / len(factors)
        for each in known:
            each.own_factor = each.factor.apart(pace.usual) if now <= each.fresh_until else 0.0


def _learn(lesson: Lesson, known: Known, pace: Pace, now: float) -> None:
    """`known`, `pace`: of its target."""
    pace.learn(lesson.stretch, lesson.seconds, known.factor)
    pace.learned_at = now
    known.measured(pace, now)
    lesson.target.load.prefill_rate = 1.0 / ((known.own_factor or pace.usual) * pace.costs[4])


def _beginning(prompt: Prompt) -> int | None:
    return prompt.text_chain[0] if prompt.text_chain else None
