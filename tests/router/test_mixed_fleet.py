"""Deployments that find their shares, in front of modelled engines: a small case of benchmarks/fleet/mixed.py."""

import random
from dataclasses import replace

import pytest

from benchmarks.fleet import mixed
from benchmarks.fleet.engine import Engine
from benchmarks.fleet.hardware import H100_8B
from benchmarks.fleet.memory import BLOCK, chain_of
from benchmarks.fleet.mixed import BULK, Mixed, NoCache, SkippingEngine, engines, one
from benchmarks.fleet.requests import fresh
from headwater_router.picker.classes import Kind


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed, "SECONDS", 100.0)
    monkeypatch.setattr(mixed, "LEARNING", 30.0)


EXTRACTION = Mixed(
    "extraction",
    mixed.extraction,
    (Kind.STRUCTURED, Kind.PLAIN),
    engines(Engine, mixed.QUICK, 2),
    engines(SkippingEngine, H100_8B, 2),
)


def test_each_class_goes_to_the_engines_that_suit_it_and_answers_take_as_long_as_with_the_best_shares() -> None:
    found = one(EXTRACTION)
    assert found.shares[Kind.STRUCTURED] > 0.9
    assert found.shares[Kind.PLAIN] < 0.1
    best = one(EXTRACTION, {Kind.STRUCTURED: 1.0, Kind.PLAIN: 0.0})
    assert found.mean <= 1.05 * best.mean
    assert found.mean < 0.95 * one(EXTRACTION, {}, 0.5).mean


def test_traffic_leaves_engines_that_become_slower() -> None:
    slowed = replace(EXTRACTION, slowed={BULK: 0.3})
    found = one(slowed)
    assert found.shares[Kind.PLAIN] > 0.5
    assert found.mean < 0.7 * one(slowed, {Kind.STRUCTURED: 1.0, Kind.PLAIN: 0.0}).mean


def test_engines_without_a_cache_keep_nothing_and_give_all_back() -> None:
    text, memory = fresh(random.Random(1), 10 * BLOCK + 7), NoCache(64 * BLOCK)
    chain = chain_of("", text)
    for _ in range(2):
        assert memory.take(chain, 10 * BLOCK + 7) == 0
    assert memory.taken == 2 * (10 * BLOCK + 7)
    for _ in range(2):
        memory.release(chain, 7)
    assert memory.taken == 0
    assert memory.take(chain, 10 * BLOCK + 7) == 0
