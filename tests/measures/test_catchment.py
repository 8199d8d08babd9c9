"""What a search leaves open: against planted maxima, whose catchments and heights are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from flatkit import analyze
from flatkit.measures.catchment import Catchment, left_open

CASES = 500


def planted(random, kind):
    """Return heights of maxima and their catchments."""
    heights = np.exp(random.normal(0, 0.5, random.integers(1, 9)))
    if kind == "the highest are the hardest to find":
        shares = heights**-2.0
    elif kind == "few of them catch most":
        shares = random.dirichlet(np.full(len(heights), 0.3))
    else:
        shares = random.dirichlet(np.ones(len(heights)))
    return heights, shares / shares.sum()


@pytest.mark.parametrize(("runs", "least", "most"), [(1, 4, 16), (3, 1, 4)])
@pytest.mark.parametrize(
    "kind",
    ["any catchments", "few of them catch most", "the highest are the hardest to find"],
)
def test_of_two_functions_the_lower_is_named_wrongly_in_at_most_5_percent(kind, runs, least, most):
    random = np.random.default_rng(0)
    named = wrong = 0
    for _ in range(CASES):
        groups, searched = [], []
        for scale in (1.0, math.exp(random.uniform(0, math.log(5)))):
            found, true = [], []
            for _ in range(runs):
                heights, shares = planted(random, kind)
                ends = scale * random.choice(heights, random.integers(least, most + 1), p=shares)
                found.append(ends.max())
                true.append(scale * heights.max())
                searched.append(Catchment.of(ends.tolist(), ends.max()))
            groups.append((np.mean(found), np.mean(true)))
        lower, higher = sorted(groups)
        open_ = left_open(searched)
        if open_ is not None and lower[0] * (1 + open_) < higher[0]:
            named += 1
            wrong += lower[1] >= higher[1]
    assert wrong <= 0.05 * CASES
    assert named > 0.25 * CASES


@pytest.mark.parametrize("balls", [1, 3])
def test_the_bound_on_the_upper_end_holds_as_often_as_it_says(balls):
    random = np.random.default_rng(1)
    held = 0
    for _ in range(4000):
        # Uniform logarithms below the upper end 0; the part for what is unseen is taken away.
        ends = np.exp(-random.uniform(0, 1, (balls, 12)))
        searched = [Catchment.of(row.tolist(), float(row.max())) for row in ends]
        unseen = 2 * (1 - 0.05 ** (1 / ends.size))
        known = left_open(searched)
        assert known is not None
        open_ = math.log1p(known) - unseen
        held += math.log(ends[0].max()) + open_ >= 0
    assert held / 4000 == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize("searches", [3, 10, 40])
def test_the_chance_of_more_is_at_most_what_it_says(searches):
    random = np.random.default_rng(2)
    ends = random.uniform(size=(4000, searches))
    known = Catchment.of(ends[0].tolist(), ends[0].max()).chance_at_most
    chances = 1 - ends.max(1)  # of a uniform number to exceed the largest
    assert (chances <= known).mean() == pytest.approx(0.95, abs=0.012)


def test_what_is_found_on_the_way_is_counted():
    one = Catchment.of([1.0, 0.995, 0.95, 0.5], best=1.0)
    assert (one.searches, one.near_best, one.chance_of_more) == (4, 2, 0.5)
    assert one.gap == pytest.approx(math.log(2)) and one.gaps == 3
    by_walks = Catchment.of([1.0, 0.995, 0.95, 0.5], best=2.0)
    more, less = left_open([by_walks]), left_open([one])
    assert by_walks.near_best == 0 and more is not None and less is not None and more > less
    assert left_open([Catchment.of([], best=1.0)]) is None
    assert left_open([Catchment.of([1.0], best=1.0)]) is None
    assert Catchment.of([1.0, -1.0, -2.0], best=1.0).gap is None
    wide = left_open([Catchment.of([1.0, 1e-300, 1e-300], best=1.0)])
    assert wide is not None and wide < math.inf
    assert Catchment.read(one.describe()) == one and Catchment.read({"odd": 1}) is None


def test_searches_of_r0_and_r1_say_how_well_they_searched():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    data = torch.randn(60, 4), torch.randint(3, (60,))
    found = analyze(
        model,
        "cross_entropy",
        data,
        measures=["zeroth_order_sharpness", "first_order_flatness"],
        rho=[0.3, 1.0],
        search_budget=400,
        progress=False,
    )
    for result in found:
        searched = result.settings["catchment"]
        assert searched["searches"] >= 3 and 0 <= searched["near_best"] <= searched["searches"]
        known = Catchment.read(searched)
        assert 0 < searched["chance_at_most"] < 1 and known is not None
        open_ = left_open([known])
        assert open_ is not None and open_ > 0.01
