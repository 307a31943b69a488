"""What each running request asks of the sampler, as rows of numbers.

A request has a *seat*, the index of its row, for as long as it runs. What a step needs of the rows is gathered into a
`SamplingBatch`: no request is looked at, and no token that was counted is counted again.
"""

import math
from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headwater_engine.kernels.interface import WEIGHT_ONE, Biases, Masks, Penalties, SamplingBatch
from headwater_engine.kernels.transfer import to_device
from headwater_engine.sampling.noise import noise_keys
from headwater_engine.sampling.params import SamplingParams

WORDS = 11
"""32-bit numbers that a row of a batch has."""
_LOWEST_TEMPERATURE = 1e-5
"""A draw at less would be no other."""
_ROW = np.dtype(
    [
        ("seed", np.uint64),
        ("outputs", np.int64),  # tokens of the answer so far
        ("min_tokens", np.int64),
        ("logprobs", np.int64),  # as `SamplingRows.logprobs` returns them
        ("line", np.int32),  # of the counts; -1: none
        ("mask", np.int32),  # the line of the masks; -1: none
        ("biased", np.bool_),
    ]
)


class Numbers(NamedTuple):
    """What a batch of R rows has of numbers: words, and views of them, which stay right as others are written there.

    To make the views takes longer than to write the words.
    """

    words: Tensor
    """[WORDS, R] int32"""
    keys: Tensor
    """[2, R]; these and what follows is as in `SamplingBatch`."""
    top_k: Tensor
    min_weight: Tensor
    lines: Tensor
    """[R]: as in `Penalties`."""
    masks: Tensor
    """[R]: as in `Masks`."""
    inverse_temperatures: Tensor
    top_p: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor


class _Shifts(NamedTuple):
    """Logits of one row that are shifted by themselves."""

    tokens: np.ndarray
    """[N] int64, ascending"""
    early: np.ndarray
    """[N] float32: before `min_tokens` tokens, when those that end the answer must not come."""
    late: np.ndarray
    """[N] float32: from then on."""


class _Lines:
    """What few of the rows need: [lines, width] int32 on the device, as many lines as were ever needed at once."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.tensor = torch.zeros(0, width, dtype=torch.int32, device=device)
        self._free: list[int] = []

    def take(self, values: np.ndarray) -> int:
        """The line that now holds these [width] int32."""
        if not self._free:
            count = len(self.tensor)
            self._free.extend(range(count, 2 * count + 1))
            self.tensor = torch.cat([self.tensor, self.tensor.new_zeros(count + 1, self.tensor.shape[1])])
        line = self._free.pop()
        self.tensor[line] = to_device(values, self.tensor.device)
        return line

    def write(self, lines: np.ndarray, values: np.ndarray) -> None:
        """[lines, width] int32 into lines that are taken."""
        device = self.tensor.device
        if device.type == "cpu":
            self.tensor.numpy()[lines] = values  # torch would share this among threads, which costs more than it takes
        else:
            self.tensor.index_copy_(0, to_device(lines, device).long(), to_device(values.copy(), device))

    def give_back(self, line: int) -> None:
        """-1: there was none."""
        if line >= 0:
            self._free.append(line)


class SamplingRows:
    """Counts of tokens, and masks, are kept for rows that ask for them only, and on the device."""

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._rows = np.zeros(0, dtype=_ROW)
        self._words = np.zeros((0, WORDS - 2), dtype=np.int32)
        """Of each row, those that stay the same from token to token."""
        self._shifts: dict[int, _Shifts] = {}
        # Most requests want none of these. It is known which do, since to look through the rows takes longer.
        self._filtered: set[int] = set()
        self._penalized: set[int] = set()
        self._masked: set[int] = set()
        self._shifted: set[int] = set()
        """Some of whose logits are shifted by themselves."""
        self._scored: set[int] = set()
        """Who want log-probabilities."""
        self._counts = _Lines(vocabulary, device)
        """As in `Penalties`."""
        self._masks = _Lines(-(-vocabulary // 32), device)
        """As in `Masks`."""

    def seat(
        self,
        index: int,
        params: SamplingParams,
        prompt: Sequence[int],
        output: Sequence[int] = (),
        *,
        masked: bool = False,
    ) -> None:
        """A request takes row `index`, which is free; `output`: tokens of its answer that there are already.

        `masked`: `mask` says what its tokens may be, each time anew.

        Raises ValueError where a token is not in the vocabulary; then the row is still free.
        """
        shifts, bits = self._shifts_of(params), self._bits_of(params)
        if bits is None and masked:
            bits = np.full(self._masks.tensor.shape[1], -1, dtype=np.int32)
        line = self._count(prompt, output) if _has_penalties(params) else -1
        mask = -1 if bits is None else self._masks.take(bits)
        if index >= len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros(index + 1, dtype=_ROW)])
            self._words = np.concatenate([self._words, np.zeros((index + 1, WORDS - 2), dtype=np.int32)])
        top_k = params.top_k if 0 < params.top_k < self._vocabulary else self._vocabulary
        min_weight = math.ceil(params.min_p * WEIGHT_ONE)
        filtered = params.temperature > 0 and (top_k < self._vocabulary or params.top_p < 1 or min_weight > 0)
        early = params.min_tokens > 0 and len(shifts.tokens) > 0
        for kind, belongs in (
            (self._filtered, filtered),
            (self._penalized, line >= 0),
            (self._masked, mask >= 0),
            (self._shifted, early or bool(params.logit_bias)),
            (self._scored, params.logprobs is not None),
        ):
            (kind.add if belongs else kind.discard)(index)
        self._shifts[index] = shifts
        self._rows[index] = (
            params.seed % 2**64,
            len(output),
            params.min_tokens if len(shifts.tokens) else 0,
            -1 if params.logprobs is None else params.logprobs,
            line,
            mask,
            bool(params.logit_bias),
        )
        self._words[index, :4] = top_k, min_weight, line, mask
        self._words[index, 4:].view(np.float32)[:] = (
            0 if params.temperature == 0 else 1 / max(params.temperature, _LOWEST_TEMPERATURE),
            params.top_p,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )

    def leave(self, index: int) -> None:
        """The request in row `index` gives it back; nothing, where nobody has it."""
        if self._shifts.pop(index, None) is None:
            return
        self._counts.give_back(int(self._rows["line"][index]))
        self._masks.give_back(int(self._rows["mask"][index]))

    def append(self, seats: Sequence[int], tokens: Sequence[int] | Tensor) -> None:
        """The answer in row seats[n] goes on with tokens[n]. A row may be named several times."""
        self._move(seats, tokens, 1)

    def retract(self, seats: Sequence[int], tokens: Sequence[int] | Tensor) -> None:
        """The answer in row seats[n] loses tokens[n] from its end."""
        self._move(seats, tokens, -1)

    def mask(self, seats: Sequence[int], bits: np.ndarray) -> None:
        """What the next tokens in the rows `seats`, which are masked, may be: [seats, ceil(vocabulary / 32)] int32."""
        if seats:
            self._masks.write(self._rows["mask"][list(seats)], bits)

    def masks(self, numbers: Numbers) -> Masks:
        """Those of the rows of a batch, by its numbers."""
        return Masks(self._masks.tensor, numbers.masks)

    def outputs(self, index: int) -> int:
        """Tokens of the answer in row `index`."""
        return int(self._rows["outputs"][index])

    def logprobs(self, seats: Sequence[int]) -> np.ndarray:
        """[R] int64: of how many tokens each row wants log-probabilities beside that of its own; -1: of none at all."""
        seats = list(seats)
        return np.full(len(seats), -1) if self._scored.isdisjoint(seats) else self._rows["logprobs"][seats]

    def pack(self, seats: Sequence[int] | np.ndarray, words: np.ndarray) -> None:
        """What a batch of the rows `seats`, in this order, has of numbers for the next token of each.

        Into [WORDS, R] int32, which is what `numbers_of` reads.
        """
        rows = self._rows[seats]
        words[:2] = noise_keys(rows["seed"], rows["outputs"])
        words[2:] = self._words[seats].T

    def batch(
        self, seats: Sequence[int], numbers: Numbers | None = None, unmasked: Set[int] = frozenset()
    ) -> SamplingBatch:
        """The rows `seats`, in this order, for the next token of each.

        `numbers`, on the device: what `pack` made of them; None: that is still to do. `unmasked`: those of the seats
        that have a mask by rights, which nobody has made; on a CPU only.
        """
        seats = list(seats)
        if numbers is None:
            packed = np.empty((WORDS, len(seats)), dtype=np.int32)
            self.pack(seats, packed)
            numbers = numbers_of(to_device(packed, self._device))
        batch = plain_batch(numbers, filters=not self._filtered.isdisjoint(seats))
        if not self._penalized.isdisjoint(seats):
            penalties = (numbers.repetition, numbers.presence, numbers.frequency)
            batch.penalties = Penalties(self._counts.tensor, numbers.lines, *penalties)
        if not self._masked.isdisjoint(seats):
            self._add_masks(batch, seats, numbers, unmasked)
        if not self._shifted.isdisjoint(seats):
            batch.biases = self._biases(seats)
        return batch

    def _add_masks(self, batch: SamplingBatch, seats: Sequence[int], numbers: Numbers, unmasked: Set[int]) -> None:
        masks = self.masks(numbers)
        if unmasked:
            free = np.array([seat in unmasked for seat in seats])
            batch.unmasked = torch.from_numpy(free)
            if self._masked.intersection(seats) <= unmasked:
                return
            masks = masks._replace(rows=torch.from_numpy(np.where(free, -1, masks.rows.numpy())))
        batch.masks = masks

    def _biases(self, seats: Sequence[int]) -> Biases | None:
        rows = self._rows[list(seats)]
        early = rows["outputs"] < rows["min_tokens"]
        places, values = [], []
        for n in np.flatnonzero(rows["biased"] | early):
            shifts = self._shifts[seats[int(n)]]
            places.append(n * self._vocabulary + shifts.tokens)
            values.append(shifts.early if early[n] else shifts.late)
        if not places:
            return None
        return Biases(to_device(np.concatenate(places), self._device), to_device(np.concatenate(values), self._device))

    def _shifts_of(self, params: SamplingParams) -> _Shifts:
        _check(params.logit_bias, self._vocabulary)
        ends = [token for token in (*params.eos_token_ids, *params.stop_token_ids) if token < self._vocabulary]
        tokens = np.array(sorted({*params.logit_bias, *ends}), dtype=np.int64)
        late = np.zeros(len(tokens), dtype=np.float32)
        late[np.searchsorted(tokens, list(params.logit_bias))] += list(params.logit_bias.values())
        early = late.copy()
        early[np.searchsorted(tokens, ends)] = -np.inf
        return _Shifts(tokens, early, late)

    def _bits_of(self, params: SamplingParams) -> np.ndarray | None:
        if params.allowed_token_ids is None:
            return None
        _check(params.allowed_token_ids, self._vocabulary)
        bits = np.zeros(32 * self._masks.tensor.shape[1], dtype=np.bool_)
        bits[list(params.allowed_token_ids)] = True
        return np.packbits(bits, bitorder="little").view("<i4")

    def _count(self, prompt: Sequence[int], output: Sequence[int]) -> int:
        """The line of the counts that now holds these."""
        _check(prompt, self._vocabulary)
        _check(output, self._vocabulary)
        counts = np.bincount(np.asarray(output, dtype=np.int64), minlength=self._vocabulary).astype(np.int32) * 2
        counts[np.asarray(prompt, dtype=np.int64)] += 1
        return self._counts.take(counts)

    def _move(self, seats: Sequence[int], tokens: Sequence[int] | Tensor, by: int) -> None:
        np.add.at(self._rows["outputs"], list(seats), by)
        lines = self._rows["line"][list(seats)]
        counted = np.flatnonzero(lines >= 0)
        if len(counted):
            if not isinstance(tokens, Tensor):
                tokens = to_device(np.asarray(tokens, dtype=np.int64), self._device)
            tokens = tokens[to_device(counted, self._device)]
            step = torch.full((), 2 * by, dtype=torch.int32, device=self._device)
            counts = to_device(lines[counted], self._device).long()
            self._counts.tensor.index_put_((counts, tokens), step, accumulate=True)


def numbers_of(words: Tensor) -> Numbers:
    """The parts of [WORDS, R] int32."""
    keys, floats = words[:2], words[6:].view(torch.float32)
    return Numbers(words, keys, *words[2:6], *floats)


def plain_batch(numbers: Numbers, *, filters: bool) -> SamplingBatch:
    """Without penalties, masks and biases."""
    return SamplingBatch(
        inverse_temperatures=numbers.inverse_temperatures,
        keys=numbers.keys,
        top_k=numbers.top_k,
        top_p=numbers.top_p,
        min_weight=numbers.min_weight,
        filters=filters,
        penalties=None,
        masks=None,
        biases=None,
    )


def _has_penalties(params: SamplingParams) -> bool:
    return bool(params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty)


def _check(tokens: Iterable[int], vocabulary: int) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise ValueError(f"The token {token} is not in the model's vocabulary of {vocabulary}.")
