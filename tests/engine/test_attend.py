"""`Kernels.attend` as a whole: what lies between a projection and attention happens in the right order."""

import pytest
import torch
from torch import Tensor

from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.kernels.interface import AttentionRules, CacheSpec, HeadNorms, Kernels, RotaryTable
from headwater_engine.kernels.reference import TorchKernels
from tests.engine.batches import ragged, random, views

ANGLES = random(64, 6, seed=3)
RULES = {
    "plain": AttentionRules(0.3),
    "window, softcap": AttentionRules(0.3, window=7, softcap=2.0),
    "rotated": AttentionRules(0.3, rope=RotaryTable(ANGLES.cos(), ANGLES.sin())),
    "normed, rotated, sinks": AttentionRules(
        0.3,
        sinks=random(4, seed=5),
        rope=RotaryTable(ANGLES.cos(), ANGLES.sin()),
        norms=HeadNorms(random(16, seed=6), random(16, seed=7), 1e-5),
    ),
}
LENGTHS = [20, 9, 33]


def attended(kernels: Kernels, rules: AttentionRules, rows: Tensor | None = None) -> Tensor:
    """Three prompts on an empty cache."""
    batch = ragged(LENGTHS, LENGTHS)
    queries, keys, values = views(kernels, sum(LENGTHS), 4, 2, 16)
    return kernels.attend(queries, keys, values, kernels.allocate(12, CacheSpec(2, 16, 16)), batch, rules, rows)


def by_hand(rules: AttentionRules) -> Tensor:
    """The same prompts one by one, without a cache: torch's own attention, with what comes before it written out."""
    queries, keys, values = (x.clone() for x in views(TorchKernels(), sum(LENGTHS), 4, 2, 16))
    if rules.norms is not None:
        for x, weight in ((queries, rules.norms.queries), (keys, rules.norms.keys)):
            x.copy_(torch.nn.functional.rms_norm(x, (16,), weight, rules.norms.eps))
    answers = []
    for q, k, v in zip(*(x.split(LENGTHS) for x in (queries, keys, values)), strict=True):
        if rules.rope is not None:
            q, k = (_rotated(x, rules.rope) for x in (q, k))
        scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(2, dim=1)) * rules.scale
        if rules.softcap is not None:
            scores = rules.softcap * torch.tanh(scores / rules.softcap)
        distance = torch.arange(len(q)).unsqueeze(1) - torch.arange(len(q))
        scores = scores.masked_fill((distance < 0) | (distance >= (rules.window or 999)), float("-inf"))
        if rules.sinks is not None:
            scores = torch.cat([scores, rules.sinks.view(4, 1, 1).expand(4, len(q), 1)], dim=-1)
        weights = scores.softmax(-1)[..., : len(q)]
        answers.append(torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(2, dim=1)))
    return torch.cat(answers)


def _rotated(x: Tensor, rope: RotaryTable) -> Tensor:
    """Six pairs of the first twelve dimensions, as complex numbers."""
    turned = torch.complex(x[..., :6], x[..., 6:12]) * torch.complex(rope.cos, rope.sin)[: len(x)].unsqueeze(1)
    return torch.cat([turned.real, turned.imag, x[..., 12:]], dim=-1)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "kernels", [TorchKernels(), CppKernels(torch.float32, Products.FLOAT32)], ids=lambda each: each.name
)
def test_it_is_attention_written_out_by_hand(kernels: Kernels, name: str) -> None:
    expected = by_hand(RULES[name])
    torch.testing.assert_close(attended(kernels, RULES[name]), expected, rtol=1e-4, atol=1e-5)
    rows = torch.tensor([19, 61])
    torch.testing.assert_close(attended(kernels, RULES[name], rows), expected[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "kernels",
    [TorchKernels(), CppKernels(torch.float32, Products.FLOAT32), CppKernels(torch.bfloat16, Products.BFLOAT16)],
    ids=lambda each: each.name,
)
def test_of_a_whole_projection_it_is_the_same_to_the_last_bit(kernels: Kernels, name: str) -> None:
    rules, batch = RULES[name], ragged([20, 9, 33], [20, 1, 5])
    if rules.norms is not None:
        norms = HeadNorms(rules.norms.queries.to(kernels.dtype), rules.norms.keys.to(kernels.dtype), 1e-5)
        rules = rules._replace(norms=norms)
    for rows in (None, torch.tensor([19, 20])):
        queries, keys, values = (x.to(kernels.dtype) for x in views(TorchKernels(), 26, 4, 2, 16))
        projected = torch.cat([x.flatten(1) for x in (queries, keys, values)], dim=1)
        caches = [kernels.allocate(12, CacheSpec(2, 16, 16)) for _ in range(2)]
        expected = kernels.attend(queries, keys, values, caches[0], batch, rules, rows).flatten(1)
        assert torch.equal(kernels.attend_projected(projected, caches[1], batch, rules, rows), expected)
        for ours, theirs in zip(caches[1][:2], caches[0][:2], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("spec", [CacheSpec(2, 16, 16), CacheSpec(1, 24, 16), CacheSpec(3, 20, 8)], ids=str)
@pytest.mark.parametrize(
    "kernels", [TorchKernels(), CppKernels(torch.bfloat16, Products.FLOAT32)], ids=lambda each: each.name
)
def test_a_cache_takes_the_memory_that_was_counted_for_it(kernels: Kernels, spec: CacheSpec) -> None:
    cache = kernels.allocate(5, spec)
    assert cache.keys.nbytes + cache.values.nbytes == 5 * kernels.bytes_per_block(spec)
