"""Checks of arguments: what passes, what does not, and what the message names."""

import math
from typing import Any

import pytest

from flatkit.checks import (
    check_choice,
    check_count,
    check_fraction,
    check_non_negative,
    check_positive,
)
from flatkit.errors import InvalidArgumentError

NO_NUMBERS: list[Any] = [math.nan, math.inf, -1.0, "1", None, True, [1.0]]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("check", [check_positive, check_non_negative, check_fraction])
def test_what_is_no_number_in_range_is_refused_by_name(check, value):
    with pytest.raises(InvalidArgumentError, match="rho must be a") as caught:
        check("rho", value, hint="a radius")
    assert repr(value) in str(caught.value) and str(caught.value).endswith("; a radius")


def test_the_ends_of_the_ranges():
    assert check_non_negative("x", 0) == 0 and check_fraction("x", 0) == 0
    assert check_fraction("x", 1) == 1 and check_positive("x", 1e-300) == 1e-300
    for check, value in ((check_positive, 0.0), (check_fraction, 1.0000001)):
        with pytest.raises(InvalidArgumentError):
            check("x", value)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None], ids=repr)
def test_counts_are_whole_numbers_from_the_minimum(value):
    with pytest.raises(InvalidArgumentError, match="epochs must be a whole number >= 1"):
        check_count("epochs", value)
    assert check_count("epochs", 0, minimum=0) == 0


def test_a_choice_names_all_and_suggests_the_nearest():
    with pytest.raises(InvalidArgumentError, match=r"one of a, lanczos, power.*mean 'lanczos'"):
        check_choice("method", "lanzcos", ["power", "lanczos", "a"])
    with pytest.raises(InvalidArgumentError) as caught:
        check_choice("method", "zzz", ["power"])
    assert "did you mean" not in str(caught.value)
