"""Amounts mean what they mean to Kubernetes: values as its own tests and its official client have them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
