"""Amounts mean what they mean to Kubernetes: values as its own tests have them, and beside its official client."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity

from headwater.quantities import parse


@pytest.mark.parametrize(
    ("amount", "value"),
    [
        (2, "2"),
        ("0", "0"),
        ("500m", "0.5"),
        ("1k", "1000"),
        ("1K", None),
        ("1M", "1e6"),
        ("2G", "2e9"),
        ("3T", "3e12"),
        ("4P", "4e15"),
        ("1E", "1e18"),
        ("1e3", "1000"),
        ("1E3", "1000"),
        ("12e-3", "0.012"),
        ("1.5e+2", "150"),
        ("1Ki", "1024"),
        ("2Mi", "2097152"),
        ("1.5Gi", "1610612736"),
        ("1Ti", "1099511627776"),
        ("1Pi", "1125899906842624"),
        ("1Ei", "1152921504606846976"),
        ("100n", "1e-7"),
        ("100u", "1e-4"),
        (".5", "0.5"),
        ("5.", "5"),
        ("0.1", "0.1"),
        ("1e99999999999999999999", "9223372036854775807"),
        ("9999E", "9223372036854775807"),
        ("0e99999999999999999999", "0"),
        ("", None),
        ("-1", None),
        ("1GB", None),
        ("1 Gi", None),
        ("1e", None),
        ("e3", None),
        (".", None),
        ("1ki", None),
        ("٣", None),
    ],
)
def test_an_amount_means_what_kubernetes_takes_it_for(amount: int | str, value: str | None) -> None:
    if value is None:
        with pytest.raises(ValueError, match="must be an amount"):
            parse(amount)
    else:
        assert parse(amount) == Decimal(value)


@given(st.integers(0, 10**9), st.sampled_from(["m", "", "k", "M", "Ki", "Mi", "e3"]))
def test_more_of_the_same_unit_is_more(number: int, suffix: str) -> None:
    assert parse(f"{number + 1}{suffix}") > parse(f"{number}{suffix}")


# Beside the official client

MOST = Decimal(2**63 - 1)


def official(amount: int | str) -> Decimal | None:
    try:
        return Decimal(parse_quantity(amount))
    except ValueError:
        return None


WRITTEN = r"([0-9]{1,12}(\.[0-9]{0,6})?|\.[0-9]{1,6})([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-3]?[0-9])?"


@given(st.one_of(st.integers(0, 2**70), st.from_regex(WRITTEN, fullmatch=True)))
def test_the_official_client_takes_an_amount_for_the_same(amount: int | str) -> None:
    """But that it knows no end."""
    theirs = official(amount)
    assert theirs is not None and parse(amount) == min(theirs, MOST)


DIFFERENT = {
    "-1": "of ours none is below zero",
    "+1": "Kubernetes takes it; no example or tool writes it",
    "1K": "Kubernetes has no such suffix",
    "1 Gi": "Kubernetes takes no space",
    "1_000": "a number of Python's",
    "٣": "a digit of Python's",
    "NaN": "no amount",
    "Infinity": "no amount",
    "9999E": "Kubernetes ends at 2^63 - 1",
    "1e99999999999999999999": "the same, and Python's decimals have no such exponent",
    "0e99999999999999999999": "likewise",
}
"""Where we mean Kubernetes and not its client, and why."""


@pytest.mark.parametrize("amount", DIFFERENT)
def test_where_the_official_client_differs_is_known(amount: str) -> None:
    try:
        ours: Decimal | None = parse(amount)
    except ValueError:
        ours = None
    theirs = official(amount)
    assert ours is None or theirs is None or ours != theirs


@pytest.mark.parametrize("amount", ["", "1e", "e3", ".", "1GB", "1ki", "Ki", "1Kii"])
def test_what_the_official_client_refuses_is_refused(amount: str) -> None:
    assert official(amount) is None
    with pytest.raises(ValueError, match="must be an amount"):
        parse(amount)
