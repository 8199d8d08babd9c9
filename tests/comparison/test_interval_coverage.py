"""Intervals of 95 % hold population values that are known in closed form, as often as they say."""

import pytest
from scipy.stats import binom

from benchmarks.sampling import seeds_trial, shares, trial

pytestmark = pytest.mark.long

UNLIKELY = 1e-4


def test_intervals_over_seeds_hold_as_often_as_they_say():
    trials = 600
    for kind, share in shares(trials, seeds_trial).items():
        right = round(share * trials)
        # Welch's interval of four runs a group is a little too wide.
        assert (
            binom.ppf(UNLIKELY, trials, 0.95) <= right <= binom.ppf(1 - UNLIKELY, trials, 0.96)
        ), kind


def test_intervals_over_samples_hold_the_values_of_the_population():
    trials = 5
    found = shares(trials, trial)
    assert len(found) == 19  # nine quantities, of one run and of the difference of two, and a mean
    # All intervals of one problem are one draw at the least.
    assert sum(found.values()) / len(found) > 0.75
    assert all(share * trials >= binom.ppf(UNLIKELY, trials, 0.95) for share in found.values())


@pytest.mark.slow
def test_intervals_over_samples_hold_in_93_to_97_percent_of_200_problems():
    trials = 200
    for kind, share in shares(trials, trial, start=10_000).items():
        low, high = (binom.ppf(p, trials, 0.95) for p in (UNLIKELY, 1 - UNLIKELY))
        assert low <= share * trials <= high, kind
