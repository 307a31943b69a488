"""How long engines take, learned from the answers of all engines of a deployment together.

An engine works in steps. Each has a constant cost (weights are read, kernels launched), one for each answer that gets a
token in it, one for each token of their contexts that is read, and one for each prompt token that is computed. So a
stretch of time at an engine takes

    factor * (constant * firsts + step * steps + answer * answers + context * context + token * tokens)

seconds: `factor` is the engine's own, 1 for most; the five costs are those of all. A first token is a stretch with
`firsts` 1 and no steps of its own; the tokens that follow are as many steps as they are, with so many answers and so
much context in each as were there on average, and the prompts that were computed meanwhile. An answer that is not
streamed is both in one. As the constant, the steps and the answers vary apart from one another, they can be told apart,
which they cannot be in first tokens alone: there a quiet engine and a slow one look the same.

Fitted is the relative error, by least squares over samples that fade, no cost below zero: a few rounds of coordinate
descent on the normal equations from the last result (projected Gauss-Seidel), which is all that five unknowns take.
What is far from the prediction, such as a compilation, a stall, or a prompt that was cached without our knowing, counts
only as a multiple or a fraction of it, and an answer's tokens for no longer than they took.

An engine's factor is all the seconds that it took over all that were predicted, lately. Replicas are alike unless
there is good reason to believe otherwise: those whose factors are near one another count as equally fast, or the noise
in it would send all requests to whoever happened to look the quickest.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from msgspec import Struct
from msgspec.structs import astuple

_SURE: Final = 256
"""Samples of the pool, after which only each one of `_SPARSE` teaches the costs: it is work, and they know enough."""
_SPARSE: Final = 4
_MEMORY: Final = 0.995
"""What the weight of a sample that teaches becomes with each further one."""
_PRIOR: Final = 2e-4
"""Samples that each default counts for."""
_SURPRISE: Final = 4.0
_SHORTEST: Final = 1e-4
"""Seconds: nothing is predicted to be shorter."""
_EAGER: Final = 32
"""Samples up to which each one is followed by a fit,"""
_EVERY: Final = 8
"""and then each one of so many."""
_ROUNDS: Final = 10
_FASTEST: Final = 1e-6
"""Seconds a prompt token, below which a fit is an artefact: were it believed, a prefix would be worth nothing."""

_FACTOR_MEMORY: Final = 0.97
_TAUGHT: Final = 32
"""Samples, from where on the costs are known well enough to go by, and for an engine to be measured by them."""
_FACTOR_SAMPLES: Final = 8
"""Before which a factor is not looked at."""
_QUICKEST: Final = 1 / 8
"""Least factor: who answers nonsense at once must not draw everything."""
_ALIKE: Final = 1.5
"""Times the others' factor, or a part of it, within which one counts as theirs."""


class Stretch(Struct, frozen=True, gc=False):
    """What was done at an engine in some time, in units of the five costs."""

    firsts: float = 0.0
    steps: float = 0.0
    answers: float = 0.0
    """Beside the one that the time is told of, in each step; all steps together. So for the next."""
    context: float = 0.0
    tokens: float = 0.0
    """Of prompts, as `work` weighs them."""


_DEFAULTS: Final = (0.02, 0.03, 2e-4, 4e-7, 1 / 4000)
"""Before there is any answer. What counts then are their ratios, which are about the same for a small model on a CPU
and a large one on four GPUs: what is not learned yet is taken to be in that ratio to a token of a prompt."""
_LEAST: Final = (0.0, 0.0, 0.0, 0.0, _FASTEST)


class Pace:
    """The five costs of the engines of one deployment."""

    __slots__ = (
        "_products", "_rests", "_since_fit", "_targets", "_tells_factors", "costs", "learned_at", "samples", "usual",
        "usual_at",
    )  # fmt: skip

    def __init__(self) -> None:
        self.samples = 0
        self.costs = list(_DEFAULTS)
        self.usual = 1.0
        """The factor that is taken for an engine of which nothing is known: the mean of those of which something is.
        The picker writes it, and when it did."""
        self.usual_at = float("-inf")
        self.learned_at = float("-inf")
        """When an answer last taught it, by the picker's clock."""
        self._products = [[0.0] * 5 for _ in range(5)]
        self._targets = [0.0] * 5
        self._since_fit = 0
        self._rests = 0
        """Samples with steps of their own."""
        self._tells_factors = False
        """There were enough, of both kinds or of one, to measure an engine by what is predicted."""

    def seconds(self, stretch: Stretch) -> float:
        """Predicted for an engine of factor 1."""
        firsts, steps, answers, context, tokens = self.costs
        return (
            firsts * stretch.firsts
            + steps * stretch.steps
            + answers * stretch.answers
            + context * stretch.context
            + tokens * stretch.tokens
        )

    @property
    def taught(self) -> bool:
        """Whether what it predicts says something of what requests take."""
        return self.samples >= _TAUGHT

    def learn(self, stretch: Stretch, seconds: float, factor: "Factor") -> None:
        """A stretch at an engine took so long."""
        predicted = max(self.seconds(stretch), _SHORTEST)
        own = factor.beside(self.usual)
        believed = _believable(seconds, own * predicted)
        self.samples += 1
        if stretch.steps:
            self._rests += 1
        self._tells_factors = self.samples > _TAUGHT and (self._rests > _TAUGHT or not self._rests)
        if self._tells_factors:
            factor.learn(believed, predicted, _part(stretch, seconds, believed))
        if self.samples <= _SURE or not self.samples % _SPARSE:
            self._teach(stretch, believed / own, predicted)

    def measure(self, stretch: Stretch, seconds: float, factor: "Factor") -> None:
        """The same, of the engine's factor alone."""
        if self._tells_factors:
            predicted = max(self.seconds(stretch), _SHORTEST)
            believed = _believable(seconds, factor.beside(self.usual) * predicted)
            factor.learn(believed, predicted, _part(stretch, seconds, believed))

    def _teach(self, stretch: Stretch, seconds: float, predicted: float) -> None:
        if not stretch.steps:
            # One step of the others is too little to tell what each costs; what it should be is taken off.
            seconds -= self.costs[2] * stretch.answers + self.costs[3] * stretch.context
            stretch = Stretch(stretch.firsts, 0.0, 0.0, 0.0, stretch.tokens)
        scaled, told = [each / predicted for each in astuple(stretch)], seconds / predicted
        for row, one in zip(self._products, scaled, strict=True):
            for place, other in enumerate(scaled):
                row[place] = _MEMORY * row[place] + one * other
        targets = self._targets
        for place, one in enumerate(scaled):
            targets[place] = _MEMORY * targets[place] + one * told
        self._since_fit += 1
        if self.samples <= _EAGER or self._since_fit >= _EVERY:
            self._since_fit = 0
            self._fit()

    def _fit(self) -> None:
        costs, targets = self.costs, self._targets
        for _ in range(_ROUNDS):
            for place, row in enumerate(self._products):
                a, b, c, d, e = row
                others = a * costs[0] + b * costs[1] + c * costs[2] + d * costs[3] + e * costs[4]
                default = _DEFAULTS[place] * (costs[4] / _DEFAULTS[4] if 0 < place < 4 else 1.0)
                own, prior = row[place], _PRIOR / default**2
                best = targets[place] + prior * default - others + own * costs[place]
                costs[place] = max(best / (own + prior), _LEAST[place])


def _believable(seconds: float, expected: float) -> float:
    return min(max(seconds, expected / _SURPRISE), expected * _SURPRISE)


def _part(stretch: Stretch, seconds: float, believed: float) -> float:
    """Of its weight. How many tokens an answer has is the engine's word, and may be anything: so that counts for no
    longer than it took. What there was to do up to its first token is known."""
    return min(1.0, max(seconds, _SHORTEST) / believed) if stretch.steps else 1.0


class Factor:
    """How much slower than the pool one engine is."""

    __slots__ = ("_predicted", "_seconds", "like", "own", "samples")

    def __init__(self) -> None:
        self.samples = 0
        self.own = 0.0
        """As it was measured; 0 before that means anything."""
        self.like = 0.0
        """The mean of those that it is like, see `liken`; 0 before that was looked at."""
        self._seconds = self._predicted = 0.0

    def beside(self, usual: float) -> float:
        """What to go by, where others have `usual`."""
        return self.apart(usual) or usual

    def apart(self, usual: float) -> float:
        """The same, but 0 where it is theirs."""
        return self.like or self._unlike(usual)

    def _unlike(self, usual: float) -> float:
        return 0.0 if usual / _ALIKE < self.own < usual * _ALIKE else self.own

    def learn(self, seconds: float, predicted: float, part: float) -> None:
        """`part`: of its weight, that what took so long has."""
        self.samples += 1
        self._seconds = _FACTOR_MEMORY * self._seconds + part * seconds
        self._predicted = _FACTOR_MEMORY * self._predicted + part * predicted
        if self.samples >= _FACTOR_SAMPLES:
            self.own = max(self._seconds / self._predicted, _QUICKEST)


def liken(factors: Iterable[Factor]) -> None:
    """Where the slowest and the quickest are near one another, all count as their mean; else they fall apart where the
    gap is the widest. So two kinds of engines are two speeds, and the noise among those of a kind is none."""
    ordered = sorted(factors, key=attrgetter("own"))
    if not ordered:
        return
    if ordered[-1].own < _ALIKE * ordered[0].own:
        mean = sum(each.own for each in ordered) / len(ordered)
        for each in ordered:
            each.like = mean
        return
    at = max(range(1, len(ordered)), key=lambda place: ordered[place].own / ordered[place - 1].own)
    liken(ordered[:at])
    liken(ordered[at:])


@dataclass(slots=True)
class Speed:
    """What was learned of one endpoint, for people."""

    samples: int = 0
    factor: float = 1.0
    seconds_per_step: float = _DEFAULTS[1]
    seconds_per_answer: float = _DEFAULTS[2]
    seconds_per_token: float = _DEFAULTS[4]


@dataclass(slots=True)
class _Length:
    mean: float
    count: int = 0


@dataclass(slots=True)
class Lengths:
    """How many tokens answers have, by the beginning of their prompts: an application has one system prompt and one
    kind of answer."""

    _by_beginning: dict[int, _Length] = field(default_factory=dict)
    _all: _Length = field(default_factory=lambda: _Length(200.0))
    """Before there is any: 200."""

    def expected(self, beginning: int | None) -> float:
        """`beginning`: the hash of a prompt's first block."""
        found = self._by_beginning.get(beginning) if beginning is not None else None
        if found is None:
            return self._all.mean
        return (found.count * found.mean + _SHRINK * self._all.mean) / (found.count + _SHRINK)

    def learn(self, beginning: int | None, tokens: int) -> None:
        _count(self._all, tokens)
        if beginning is None:
            return
        found = self._by_beginning.pop(beginning, None) or _Length(self._all.mean)
        self._by_beginning[beginning] = found
        _count(found, tokens)
        if len(self._by_beginning) > _MOST_BEGINNINGS:
            del self._by_beginning[next(iter(self._by_beginning))]


_SHRINK: Final = 2.0
"""Answers of any kind that an application's mean counts beside its own."""
_LONGEST_MEMORY: Final = 100
_LONGEST: Final = 64
"""Times the mean, as which a longer answer counts: its tokens are the engine's word, and may be anything."""
_MOST_BEGINNINGS: Final = 4096


def _count(length: _Length, tokens: int) -> None:
    length.count = min(length.count + 1, _LONGEST_MEMORY)
    length.mean += (min(tokens, _LONGEST * max(length.mean, 1.0)) - length.mean) / length.count
