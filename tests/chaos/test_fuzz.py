"""Each kind of damage of `make chaos` a few times: what it calls does not change without it."""

import random

import pytest

from tests.chaos.fuzz import Case, kinds


@pytest.mark.parametrize("case", sorted(set(kinds()), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_damage_breaks_nothing(case: Case) -> None:
    for number in range(40):
        case(random.Random(number))
