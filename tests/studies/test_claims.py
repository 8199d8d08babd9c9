"""Verdicts: held against SciPy, and against studies whose effects are known."""

import math

import numpy
import pytest
from scipy import stats

from flatkit.studies.claims import Asked, both, decide
from flatkit.studies.matched import at_loss, common_losses, laggards

LEAST = -math.log(0.9)


def asked(effects):
    return Asked("", "gam", "sgd", "flatter", "flatter", list(effects), "ratio", LEAST)


def test_the_interval_is_that_of_scipy():
    effects = numpy.random.default_rng(0).normal(0.3, 0.2, 7)
    (claim,) = decide([asked(effects)])
    error = stats.sem(effects)
    low, high = stats.t.interval(0.95, 6, effects.mean(), error)
    assert claim.effect == pytest.approx(numpy.exp(-effects.mean()))
    assert (claim.low, claim.high) == pytest.approx((numpy.exp(-high), numpy.exp(-low)))


@pytest.mark.parametrize("mean", [0.0, 0.05, 0.3, -0.4])
def test_one_claim_follows_two_one_sided_tests_of_scipy(mean):
    effects = numpy.random.default_rng(1).normal(mean, 0.1, 9)
    (claim,) = decide([asked(effects)])
    above = numpy.array(stats.ttest_1samp(effects, 0.0, alternative="greater"))[1]
    below = numpy.array(stats.ttest_1samp(effects, LEAST, alternative="less"))[1]
    expected = "holds" if above <= 0.025 else "fails" if below <= 0.025 else "cannot tell"
    assert claim.verdict == expected


def test_more_seeds_tell_as_many_as_were_said():
    generator = numpy.random.default_rng(2)
    effects = generator.normal(0.06, 0.1, 5)
    (claim,) = decide([asked(effects)])
    assert claim.verdict == "cannot tell"
    assert claim.seeds_needed is not None
    n = claim.seeds_needed
    scaled = stats.norm.ppf((numpy.arange(n) + 0.5) / n)
    scaled = effects.mean() + effects.std(ddof=1) * scaled / scaled.std(ddof=1)
    (more,) = decide([asked(scaled)])
    (fewer,) = decide([asked(scaled[:: max(2, n // 4)])])
    assert more.verdict in ("holds", "fails")
    assert fewer.verdict == "cannot tell"


def test_one_seed_and_none_have_no_interval():
    one, none = decide([asked([0.5]), asked([])])
    assert (one.verdict, one.low, none.effect) == ("cannot tell", None, None)
    assert "one seed has no spread" in one.reason


def test_verdicts_on_studies_with_planted_effects_err_in_at_most_5_percent():
    """200 studies of 6 claims: none, one that matters, and one in between, with heavy noise."""
    generator, wrong, told = numpy.random.default_rng(3), 0, 0
    for _ in range(200):
        seeds = int(generator.integers(3, 12))
        planted = generator.choice([-0.3, 0.0, 0.5 * LEAST, LEAST, 0.5], 6)
        noise = generator.uniform(0.05, 0.4)
        heavy = generator.standard_t(5, (6, seeds)) / numpy.sqrt(5 / 3)
        claims = decide(
            [asked(effect + noise * row) for effect, row in zip(planted, heavy, strict=True)]
        )
        bad = [
            (claim.verdict == "holds" and effect <= 0)
            or (claim.verdict == "fails" and effect >= LEAST)
            for claim, effect in zip(claims, planted, strict=True)
        ]
        wrong += any(bad)
        told += sum(claim.verdict != "cannot tell" for claim in claims)
    assert wrong <= 10
    assert told > 300  # a rule that never tells would never err


@pytest.mark.parametrize(
    "effects", [[0.01, 0.01], [0.9 - 0.8, 0.8 - 0.7, 0.7 - 0.6], [0.0] * 3, [-0.2, -0.2]]
)
def test_equal_effects_have_no_spread_and_tell_nothing(effects):
    (claim,) = decide([asked(effects)])
    assert (claim.verdict, claim.low, claim.high) == ("cannot tell", None, None)
    assert "the same for all" in claim.reason and claim.seeds_needed is None


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_accuracies_on_few_samples_err_in_at_most_5_percent(seeds):
    generator, trials = numpy.random.default_rng(4), 500
    for gain in (0.0, 0.002):
        wrong = 0
        for _ in range(trials):
            one, other = (generator.binomial(50, 0.96 + g, seeds) / 50 for g in (gain, 0.0))
            effects = (one - other).tolist()
            question = Asked("", "a", "b", "better", "generalises", effects, "difference", 0.002)
            (claim,) = decide([question])
            wrong += claim.verdict == ("fails" if gain else "holds")
        assert wrong <= 0.05 * trials


def test_both_holds_only_if_each_part_does():
    strong, weak, against = [0.9, 1.0, 1.1, 1.0], [0.9, -1.0, 1.1, -1.0], [-0.9, -1.0, -1.1, -1.0]
    for parts, expected in (
        ([strong, strong], "holds"),
        ([strong, weak], "cannot tell"),
        ([weak, against], "fails"),
    ):
        assert both("", "gam", decide([asked(part) for part in parts])).verdict == expected


def test_numbers_at_a_training_loss_follow_a_power_law_exactly():
    losses = numpy.geomspace(2.0, 0.01, 9)
    curve = [(loss, 3.0 * loss**0.7) for loss in losses]
    for loss in (1.7, 0.3, 0.0123):
        assert at_loss(curve, loss) == pytest.approx(3.0 * loss**0.7)
    assert at_loss(curve, 0.001) is None
    assert at_loss(curve, 2.5) is None


def test_common_losses_are_those_that_all_passed():
    curves = {
        "a": [(2.0, 1.0), (0.5, 1.0)],
        "b": [(1.5, 1.0), (0.1, 1.0)],
        "c": [(3.0, 1.0), (0.4, 1.0)],
    }
    levels = common_losses(curves, 4)
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == pytest.approx(1.5)
    assert levels[-1] == pytest.approx(0.5)
    assert all(at_loss(curve, loss) is not None for curve in curves.values() for loss in levels)
    assert laggards(curves, 0.2) == ["a", "c"]
    assert common_losses({"a": [(2.0, 1.0), (1.0, 1.0)], "b": [(0.5, 1.0), (0.1, 1.0)]}) == []
