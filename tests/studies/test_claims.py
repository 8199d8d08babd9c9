"""Verdicts: held against SciPy, and against studies whose effects are known."""

import math

import numpy
import pytest
from scipy import stats

from flatkit.comparison.intervals import Part
from flatkit.results import Comparison, Entry, Report, Result
from flatkit.results.status import Status
from flatkit.studies.claims import Asked, both, decide
from flatkit.studies.effects import Doubt
from flatkit.studies.matched import at_loss, common_losses, laggards
from flatkit.studies.outcome import judged
from flatkit.studies.settings import Arm, Study

LEAST = -math.log(0.9)


NONE = Doubt()


def asked(effects, doubt=NONE):
    return Asked("", "gam", "sgd", "flatter", "flatter", list(effects), "ratio", LEAST, doubt=doubt)


def known(number):
    """Return a number that there is."""
    assert number is not None
    return number


def geometric(one, other, share):
    return one ** (1 - share) * other**share


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
        assert at_loss(curve, loss, geometric) == pytest.approx(3.0 * loss**0.7)
    assert at_loss(curve, 0.001, geometric) is None
    assert at_loss(curve, 2.5, geometric) is None


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
    assert all(
        at_loss(curve, loss, geometric) is not None for curve in curves.values() for loss in levels
    )
    assert laggards(curves, 0.2) == ["a", "c"]
    assert common_losses({"a": [(2.0, 1.0), (1.0, 1.0)], "b": [(0.5, 1.0), (0.1, 1.0)]}) == []


def trace_claim(make, seeds=8, ratio=0.5, noise=0.02):
    """Return the claim that an arm of half the trace is flatter, with results that `make` makes."""
    draws = numpy.random.default_rng(5)
    entries = [
        Entry(f"{arm}, seed {n}", arm, Report([make(arm, factor * 8.0 * math.exp(x))]), seed=str(n))
        for arm, factor in (("sgd", 1.0), ("sam", ratio))
        for n, x in enumerate(draws.normal(0, noise, seeds))
    ]
    study = Study(arms=[Arm("sgd"), Arm("sam", {"optimizer": "sam"})], seeds=range(seeds))
    claim, _ = judged(study, {"": Comparison(entries)}, {}, {})
    return claim


@pytest.mark.parametrize("kind", ["residual", "standard_error"])
def test_a_verdict_holds_only_beyond_the_errors_of_the_solver_too(kind):
    small = trace_claim(lambda _, value: Result("trace", value, 0.01 * value, kind))
    large = trace_claim(lambda _, value: Result("trace", value, 0.4 * value, kind))
    assert (small.verdict, large.verdict) == ("holds", "cannot tell")
    assert large.effect == pytest.approx(small.effect, rel=1e-9)
    assert known(large.low) < known(large.effect) < 1 < known(large.high)
    assert known(small.high) < 0.6
    assert large.briefly == "within its measure's errors" and large.seeds_needed is None


def test_the_interval_of_a_ratio_holds_what_residuals_allow():
    """Residuals of 30 %: the true ratio may be 0.5 * 0.7 / 1.3 or 0.5 * 1.3 / 0.7."""
    found = trace_claim(
        lambda _, value: Result("trace", value, 0.3 * value, "residual"), noise=1e-3
    )
    assert found.low == pytest.approx(0.5 * 0.7 / 1.3, rel=2e-3)
    assert found.high == pytest.approx(0.5 * 1.3 / 0.7, rel=2e-3)
    assert known(found.low) < 0.5 * 0.7 / 1.3 and known(found.high) > 0.5 * 1.3 / 0.7
    without = trace_claim(lambda _, value: Result("trace", value, 1.0 * value, "residual"))
    assert (without.verdict, without.low) == ("cannot tell", None)  # a trace of 0 has no ratio


def test_errors_over_probes_and_samples_add_up_in_squares_as_scipy_has_it():
    blocks = numpy.random.default_rng(6).normal(1.0, 0.2, (2, 9))
    own = blocks / blocks.mean(axis=1, keepdims=True)

    def make(arm, value):
        values = (value * own[int(arm == "sam")]).tolist()
        settings = {"influence": {"values": values}}
        return Result("trace", value, 0.05 * value, "standard_error", settings=settings)

    found = trace_claim(make)
    draws = numpy.random.default_rng(5)
    noise = [draws.normal(0, 0.02, 8) for _ in range(2)]
    effects = math.log(2) + noise[0] - noise[1]
    errors = [stats.sem(effects), 0.1, stats.sem(own[0] - own[1])]
    total = math.sqrt(sum(error**2 for error in errors))
    freedom = total**4 / (errors[0] ** 4 / 7 + errors[2] ** 4 / 8)
    low, high = stats.t.interval(0.95, freedom, effects.mean(), total)
    assert (found.low, found.high) == pytest.approx((math.exp(-high), math.exp(-low)))


def test_what_a_search_leaves_open_counts_against_the_arm_that_is_called_flatter():
    """Maxima of sam may be higher than its searches found; those of sgd only help the claim."""

    def search(arm, value, gap):
        catchment = {
            "searches": 3,
            "near_best": 1,
            "within": 0.01,
            "chance_of_more": 1.0,
            "chance_at_most": 0.6,
            "gap": gap,
            "gaps": 2,
        }
        settings = {"rho": 0.1, "catchment": catchment}
        return Result("zeroth_order_sharpness", value, None, "lower_bound", "kinks", settings)

    sure = trace_claim(lambda arm, value: search(arm, value, 0.01))
    open_ = trace_claim(lambda arm, value: search(arm, value, 4.0))
    assert (sure.verdict, open_.verdict) == ("holds", "cannot tell")
    assert known(sure.high) < 1 < known(open_.high)
    missed = trace_claim(
        lambda arm, value: Result(
            "zeroth_order_sharpness", value, None, "lower_bound", "budget", {"rho": 0.1}
        )
    )
    assert missed.verdict == "cannot tell" and "did not converge in sam, seed 0" in missed.reason


def test_verdicts_err_in_at_most_5_percent_also_where_the_errors_of_the_solver_are_large():
    """200 studies: residuals move all effects to one side, by as much as they may."""
    generator, wrong = numpy.random.default_rng(7), 0
    for _ in range(200):
        seeds, bound = int(generator.integers(3, 12)), float(generator.uniform(0.1, 0.6))
        planted = generator.choice([-0.3, 0.0, LEAST, 0.5], 6)
        moved = bound * generator.choice([-1, 1], (6, 1))
        drawn = planted[:, None] + moved + generator.normal(0, 0.1, (6, seeds))
        claims = decide([asked(row, Doubt(bound, bound)) for row in drawn])
        wrong += any(
            (claim.verdict == "holds" and effect <= 0)
            or (claim.verdict == "fails" and effect >= LEAST)
            for claim, effect in zip(claims, planted, strict=True)
        )
    assert wrong <= 10


def test_seeds_that_would_tell_count_errors_that_more_seeds_do_not_lessen():
    effects = numpy.random.default_rng(2).normal(0.06, 0.1, 5)
    (plain,), (probed,) = (decide([asked(effects, Doubt(parts=p))]) for p in ((), (Part(0.01),)))
    assert known(plain.seeds_needed) < known(probed.seeds_needed)


def test_two_seeds_that_agree_by_chance_tell_no_more_for_errors_that_are_well_known():
    """Normal seeds and a known error, no effect: at most as many claims hold as of seeds alone."""
    generator, false = numpy.random.default_rng(8), 0
    for _ in range(1000):
        effects = generator.normal(generator.normal(0, 0.02), 0.1, 2)
        (claim,) = decide([asked(effects, Doubt(parts=(Part(0.02),)))])
        false += claim.verdict == "holds"
    assert false <= 35  # 25 are expected of a test at 2.5 %, 35 but for a chance of 2 %


def test_searches_that_ended_with_their_budget_along_a_training_are_said_to_have():
    def run(arm, epoch):
        results = [
            Result("loss", 1.0 / epoch, settings={"split": "train"}),
            Result("first_order_flatness", 0.5, settings={"rho": 0.1}, status=Status.BUDGET),
        ]
        name = f"{arm}, seed 0, epoch {epoch}"
        return Entry(name, arm, Report(results), seed="0", epoch=float(epoch))

    along = Comparison([run(arm, epoch) for arm in ("sgd", "sam") for epoch in (1, 2, 4)])
    study = Study(arms=[Arm("sgd"), Arm("sam", {"optimizer": "sam"})], seeds=[0])
    claims = judged(study, {"": Comparison(along.entries[2::3])}, {"": along}, {})
    (claim,) = [claim for claim in claims if "at training loss" in claim.claim]
    assert claim.briefly == "it did not converge in sgd, seed 0, epoch 1 (budget)"
