"""Intervals, tests and correlations against SciPy; what is called flattest, and why not."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from flatkit.comparison.correlation import kendall, rank_correlations
from flatkit.comparison.intervals import Part, combined, holm, interval, of_difference
from flatkit.comparison.readings import compared
from flatkit.measures.catchment import Catchment
from flatkit.render import curvature_figure
from flatkit.results import Comparison, Entry, Report, Result

RANDOM = np.random.default_rng(0)


def report(trace, error=1e-6, blocks=None, catchment=None, status="converged", **losses):
    influence = {} if blocks is None else {"influence": {"blocks": len(blocks), "values": blocks}}
    found = [Result("trace", trace, error, "standard_error", settings=influence)]
    for split, loss in losses.items():
        found.append(Result("loss", loss, 0.0, settings={"split": split}))
    if catchment is not None:
        settings = {"rho": 1.0, "catchment": catchment}
        found.append(
            Result("first_order_flatness", trace, None, "lower_bound", status, settings=settings)
        )
    return Report(found)


def groups(**values):
    return Comparison(
        [
            Entry(f"{group}, seed {seed}", group, report(trace), seed=str(seed))
            for group, traces in values.items()
            for seed, trace in enumerate(traces)
        ]
    )


def trace_of(comparison):
    return comparison.statistics().quantities["trace"]


def test_groups_of_common_seeds_are_compared_in_pairs_as_scipy_does():
    seeds = RANDOM.normal(0, 5, 6)
    sgd, gam = 20 + seeds + RANDOM.normal(0, 0.3, 6), 18 + seeds + RANDOM.normal(0, 0.3, 6)
    (pair,) = trace_of(groups(sgd=sgd, gam=gam)).pairs
    wanted = stats.ttest_rel(sgd, gam)
    low, high = wanted.confidence_interval()
    assert pair.paired_by == "seed" and pair.runs == 6 and pair.differs
    assert pair.p == pytest.approx(wanted.pvalue, rel=1e-3)
    assert (pair.low, pair.high) == pytest.approx((low, high), rel=1e-4)
    assert trace_of(groups(sgd=sgd, gam=gam)).flattest == "gam"


def test_groups_without_common_seeds_are_compared_as_welch_does():
    sgd, gam = RANDOM.normal(20, 5, 5), RANDOM.normal(10, 1, 4)
    entries = [
        Entry(f"{g}{n}", g, report(x))
        for g, xs in (("a", sgd), ("b", gam))
        for n, x in enumerate(xs)
    ]
    (pair,) = trace_of(Comparison(entries)).pairs
    wanted = stats.ttest_ind(sgd, gam, equal_var=False)
    low, high = wanted.confidence_interval()
    assert pair.paired_by == "none" and pair.runs == 4
    assert pair.p == pytest.approx(np.array(wanted)[1], rel=1e-4)
    assert (pair.low, pair.high) == pytest.approx((low, high), rel=1e-4)


def test_two_runs_are_compared_block_by_block_of_their_samples():
    shared = RANDOM.normal(0, 5, 25)
    one, other = 20 + shared + RANDOM.normal(0, 1, 25), 18 + shared + RANDOM.normal(0, 1, 25)
    entries = [
        Entry(name, name, report(float(x.mean()), 0.0, x.tolist()))
        for name, x in (("a", one), ("b", other))
    ]
    (pair,) = trace_of(Comparison(entries)).pairs
    wanted = stats.ttest_rel(one, other)
    assert pair.paired_by == "samples"
    assert pair.p == pytest.approx(wanted.pvalue)
    assert (pair.low, pair.high) == pytest.approx(tuple(wanted.confidence_interval()))
    row = trace_of(Comparison(entries)).rows[0]
    assert row.sampling == pytest.approx(stats.sem(one)) and row.seeds is None


def checkpoints(trainings, copies, noise=0.1):
    """Two groups of equal trainings, each measured at several checkpoints."""
    return Comparison(
        [
            Entry(f"{group}{seed}, {n}", group, report(base + RANDOM.normal(0, noise)), str(seed))
            for group in "ab"
            for seed in range(trainings)
            for base in [RANDOM.normal(10, 1)]
            for n in range(copies)
        ]
    )


def test_several_checkpoints_of_one_seed_are_one_training():
    for trainings, why in ((1, "5 runs of 1 training"), (2, "10 runs of 2 trainings")):
        quantity = trace_of(checkpoints(trainings, copies=5))
        assert quantity.flattest is None and why in quantity.why
    comparison = checkpoints(3, copies=4)
    (pair,) = trace_of(comparison).pairs
    means = [
        [
            np.mean([e.report["trace"].value for e in comparison.in_group(g) if e.seed == s])
            for s in "012"
        ]
        for g in "ab"
    ]
    wanted = np.array(stats.ttest_rel(means[0], means[1]))[1]
    assert pair.runs == 3 and pair.p == pytest.approx(wanted, rel=1e-3)
    row = trace_of(comparison).rows[0]
    assert row.runs == 12 and row.seeds == pytest.approx(stats.sem(means[0]))


def test_copies_of_one_file_are_one_training():
    entries = [
        Entry(f"{g}{n}", g, Report(report(x + n / 9).results, checkpoint={"sha256": g}))
        for g, x in (("a", 1.0), ("b", 9.0))
        for n in range(3)
    ]
    quantity = trace_of(Comparison(entries))
    assert quantity.flattest is None and "3 runs of 1 training" in quantity.why
    assert quantity.rows[0].seeds is None


@pytest.mark.parametrize("draw", ["normal", "lognormal"])
@pytest.mark.parametrize("sizes", [(3, 3), (3, 20)])
def test_equal_groups_of_unequal_sizes_are_called_different_in_at_most_5_percent(draw, sizes):
    random, trials = np.random.default_rng(1), 1000
    rows = [getattr(random, draw)(0.0, 1.0, (trials, size)) for size in sizes]
    parts = [(of_difference(a, b), a.mean() - b.mean()) for a, b in zip(*rows, strict=True)]
    assert sum(interval(x, [part]).p < 0.05 for part, x in parts) <= 0.05 * trials


def test_an_infinite_number_is_shown_and_settles_nothing():
    comparison = groups(a=[np.inf, 1.0, 2.0], b=[3.0, 4.0, 5.0])
    assert trace_of(comparison).flattest is None
    for kind in ("text", "markdown", "latex", "csv", "html"):
        assert comparison.table(format=kind)


def test_ranks_of_infinite_numbers_are_those_of_scipy():
    one, other = [1.0, np.inf, np.inf, 2.0, -np.inf], [3.0, 9.0, np.inf, 2.0, 2.5]
    found = rank_correlations(np.array([one]), np.array([other]))
    # Old SciPy makes NaN of infinite values: numbers of the same ranks stand in.
    finite = [np.nan_to_num(each, posinf=99.0, neginf=-99.0) for each in (one, other)]
    assert found == pytest.approx(np.array(stats.kendalltau(*finite))[0])


def test_the_errors_stand_apart():
    entries = [
        Entry(f"a{n}", "a", report(value, 0.5, [value - 1, value + 1]))
        for n, value in enumerate([1.0, 2.0, 6.0])
    ]
    (row,) = trace_of(Comparison(entries)).rows
    assert row.mean == 3 and row.solver == 0.5
    assert row.seeds == pytest.approx(stats.sem([1.0, 2.0, 6.0]))
    assert row.sampling == pytest.approx(1.0)


def test_holm_and_combined_errors():
    p = RANDOM.uniform(0, 0.2, 7)
    order = np.argsort(p)
    wanted = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(7, 0, -1)))
    assert np.asarray(holm(p.tolist()))[order] == pytest.approx(wanted)
    assert combined([Part(2.0, 3)]) == pytest.approx((2.0, 3))
    found = interval(1.0, [Part(0.5, 7)], bound=0.2)
    low, high = stats.t.interval(0.95, 7, loc=1.0, scale=0.5)
    assert (found.low, found.high) == pytest.approx((low - 0.2, high + 0.2))
    assert found.p == pytest.approx(2 * stats.t.sf(0.8 / 0.5, 7))


@pytest.mark.long
@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_few_seeds_beside_many_blocks_of_samples_err_in_about_5_percent(ratio):
    random, trials = np.random.default_rng(2), 5000
    seeds = np.sqrt(random.chisquare(2, trials) / 2)
    samples = np.sqrt(ratio * random.chisquare(24, trials) / 24)
    errors = random.normal(0, np.sqrt(1 + ratio), trials)
    rows = zip(errors, seeds, samples, strict=True)
    found = [interval(x, [Part(one, 2), Part(two, 24)]) for x, one, two in rows]
    wrong = sum(one.low > 0 or one.high < 0 for one in found)
    assert wrong == sum(one.p < 0.05 for one in found)
    assert 0.03 * trials < wrong < 0.0625 * trials


@pytest.mark.long
@pytest.mark.parametrize("share", [0.2, 0.7, 0.9])
def test_small_p_of_few_seeds_are_not_too_bold_whatever_their_share(share):
    random, trials = np.random.default_rng(3), 200_000
    seeds = np.sqrt(share * random.chisquare(2, trials) / 2)  # of 3; the rest is known exactly
    errors, exact = random.normal(0, 1, trials), math.sqrt(1 - share)
    far = np.abs(errors) > 2.5 * np.hypot(seeds, exact)  # of nearer ones p is above 0.01
    found = [
        interval(x, [Part(one, 2), Part(exact)]).p
        for x, one in zip(errors[far], seeds[far], strict=True)
    ]
    for p in (0.01, 0.001):
        assert sum(one < p for one in found) < 1.35 * p * trials


def test_p_of_several_parts_lies_between_those_of_each():
    alone = [2 * stats.t.sf(4.0, freedom) for freedom in (3, 24)]
    assert alone[1] < interval(4.0, [Part(0.6, 3), Part(0.8, 24)]).p < alone[0]
    nearly = interval(4.0, [Part(1.0, 3), Part(1e-9, 24)]).p
    assert nearly == pytest.approx(alone[0], rel=1e-6)
    assert interval(0.0, [Part(0.6, 3), Part(0.8, 24)]).p == pytest.approx(1.0)


def test_p_is_corrected_for_all_pairs_of_a_quantity():
    quantity = trace_of(groups(a=[1, 2, 3.1], b=[2, 3.3, 4], c=[2.5, 3, 4.1]))
    assert [pair.p_holm for pair in quantity.pairs] == holm([pair.p for pair in quantity.pairs])


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"a": [1.0, 1.1], "b": [9.0, 9.2]}, "3 are the least"),
        ({"a": [1.0, 5.0, 2.0], "b": [2.0, 4.9, 3.0]}, "do not differ"),
        ({"a": [1.0, 2.0, 3.0]}, "nothing to compare"),
        ({"a": [1.0, 1.5, 2.0], "b": [2.0, 2.5, 3.0]}, "spread over seeds is not known"),
        ({"a": [0.9, 0.8, 0.7], "b": [0.8, 0.7, 0.6]}, "spread over seeds is not known"),
    ],
)
def test_nobody_is_flattest_without_a_reason_that_is_said(values, why):
    quantity = trace_of(groups(**values))
    assert quantity.flattest is None and why in quantity.why


@pytest.mark.parametrize(("ratio", "winner"), [(1.3, None), (4.0, "a")])
def test_lower_bounds_are_told_apart_beyond_what_the_searches_leave_open(ratio, winner):
    searched = Catchment.of([1.0, 0.95, 0.9, 0.8, 0.7, 0.6], best=1.0).describe()
    entries = [
        Entry(name, name, report(value, catchment=searched, status="kinks"))
        for name, value in (("a", 1.0), ("b", ratio))
    ]
    found = Comparison(entries).statistics()
    assert found.quantities["first_order_flatness_over_rho_squared[rho=1.0]"].flattest == winner


def scattered(runs):
    return np.round(RANDOM.normal(size=runs), 1), np.round(RANDOM.normal(size=runs), 1)


@pytest.mark.parametrize("runs", [5, 12, 40])
def test_rank_correlations_are_those_of_scipy(runs):
    one, other = scattered(runs)
    assert kendall(one, other) == pytest.approx(np.array(stats.kendalltau(one, other))[0])
    assert kendall([1.0] * runs, other) is None


def grid(trace, gap, lrs=(1, 2, 3), groups=("sgd", "gam")):
    entries = []
    for group in groups:
        for lr in lrs:
            loss = 0.1
            found = report(trace(group, lr), train=loss, test=loss + gap(group, lr))
            training = {"lr": lr, "optimizer": group, "seed": 0}
            found = Report(found.results, checkpoint={"training": training})
            entries.append(Entry(f"{group} {lr}", group, found))
    return Comparison(entries)


def test_a_correlation_that_one_setting_makes_is_granulated_away():
    # Between the groups both grow together; within a group, along lr, they fall apart.
    comparison = grid(lambda g, lr: 10 * (g == "sgd") + lr, lambda g, lr: 10 * (g == "sgd") - lr)
    found = {c.key: c for c in comparison.statistics().correlations}
    plain, fine = found["trace ~ loss_gap"], found["trace ~ loss_gap, granulated"]
    assert plain.tau == pytest.approx((9 - 6) / 15)
    assert fine.tau == pytest.approx((1 + -1) / 2)  # over the optimizer, over lr
    assert "6 runs say little" in plain.warning and plain.low < plain.tau < plain.high
    assert fine.title == (
        "trace tr H with loss gap (test - train), among runs that differ in one setting alone "
        "(learning rate, optimizer)"
    )
    many = grid(lambda g, lr: lr, lambda g, lr: lr, lrs=range(5))
    assert all(c.warning == "" for c in many.statistics().correlations)


def test_the_gap_is_test_minus_train_with_the_errors_of_both():
    settings = [
        {"split": split, "sampling_error": error}
        for split, error in (("train", 0.3), ("test", 0.4))
    ]
    losses = [Result("loss", v, 0.0, settings=s) for v, s in zip((1.0, 1.5), settings, strict=True)]
    comparison = Comparison([Entry("a", "a", Report(losses))])
    gap = comparison.statistics().quantities["loss_gap"]
    assert gap.rows[0].mean == 0.5 and gap.rows[0].sampling == pytest.approx(0.5)


def test_a_seed_with_more_checkpoints_counts_once_in_mean_spread_and_difference():
    """The table said that a was lower, and the differences beside it that b was."""

    def entry(name, group, seed, top):
        found = Report([Result("top_eigenvalues", [top], [0.01], "residual")])
        return Entry(name, group, found, seed)

    first = [entry(f"a0, {n}", "a", "0", 1.0) for n in range(3)]
    first += [entry("a1", "a", "1", 3.0), entry("a2", "a", "2", 3.1)]
    comparison = Comparison([*first, *(entry(f"b{n}", "b", str(n), 2.0) for n in range(3))])
    quantity = comparison.statistics().quantities["top_eigenvalues"]
    assert [row.mean for row in quantity.rows] == pytest.approx([7.1 / 3, 2.0])
    assert quantity.pairs[0].difference == pytest.approx(7.1 / 3 - 2.0)
    spread = np.std([1.0, 3.0, 3.1], ddof=1)
    told = comparison.table("markdown")
    assert f"{7.1 / 3:.1f} ± {spread:.1f}" in told and "of one seed are one training" in told
    lines = curvature_figure(comparison).axes[0].lines
    assert any(
        line.get_marker() == "|" and float(np.asarray(line.get_xdata())[0]) == 7.1 / 3
        for line in lines
    )


def test_the_gap_is_as_wrong_as_both_of_its_losses_together():
    losses = [
        Result("loss", value, error, "rounding", status=status, settings={"split": split})
        for split, value, error, status in (
            ("train", 1.0, 0.3, "rounding"), ("test", 1.5, 0.2, "converged")
        )
    ]  # fmt: skip
    gap = compared(Report(losses))["loss_gap"]
    assert gap.error == 0.5 and not gap.converged


def test_caveats_are_said_where_they_apply():
    def of(loss, objective):
        found = report(1.0, train=loss)
        return Report(found.results, objective={"loss": "cross_entropy", **objective})

    def said(*losses, **objective):
        entries = [Entry(str(n), str(n), of(x, objective)) for n, x in enumerate(losses)]
        comparison = Comparison(entries)
        found = comparison.statistics().caveats
        assert all(line in comparison.table("markdown") for line in found)
        return " / ".join(found)

    assert said(0.5, 0.6) == ""
    assert "differ 3-fold (0 0.2, 1 0.6)" in said(0.2, 0.6)
    assert "nearly vanishes" in said(1e-4, 1.5e-4)
    assert "before ReLU can be rescaled" in said(0.5, 0.6, rescalable=["ReLU"])


def test_a_gradient_that_decides_r1_is_said_with_its_part_and_where():
    def run(gradient, shape="l2"):
        # of a quadratic with curvature 4 along the gradient, max ‖∇L‖ in the ball is ‖∇L‖ + 4 ρ
        searched = [
            Result(
                "first_order_flatness", rho * (gradient + 4 * rho), None, "lower_bound",
                settings={
                    "rho": rho, "geometry": shape, "value_over_rho_squared": gradient / rho + 4,
                },
            )
            for rho in (0.01, 0.1)
        ]  # fmt: skip
        return Report([Result("gradient_norm", gradient, 0.0), *searched])

    def said(**gradients):
        entries = [Entry(name, name, run(value)) for name, value in gradients.items()]
        return " / ".join(Comparison(entries).statistics().caveats)

    assert said(a=0.03, b=0.02) == ""  # 0.03 of 0.03 + 0.04
    assert "gradient of b is not near zero" in said(a=0.03, b=0.36)
    assert "90% of R1/ρ² (b, ρ = 0.01)" in said(a=0.03, b=0.36)
    assert "gradient of a, b is not" in said(a=0.3, b=0.36)
    # In another ball the gradient has another norm: its part of R1/ρ² was said to be 317 %.
    entries = [Entry(name, name, run(0.36, "adaptive")) for name in "ab"]
    assert not Comparison(entries).statistics().caveats


def test_a_verdict_names_all_that_did_not_converge_and_contradicts_itself_nowhere():
    random = np.random.default_rng(3)
    entries = []
    for group, mean, status in (
        ("sgd", 9, "budget"),
        ("sam", 2, "budget"),
        ("gam", 1, "converged"),
    ):
        for seed, value in enumerate((mean + random.normal(0, 0.1, 5)).tolist()):
            report = Report([Result("trace", value, 0.0, status=status)])
            entries.append(Entry(f"{group}, seed {seed}", group, report, f"{seed}"))
    (sentence,) = Comparison(entries).statistics().verdict
    assert "did not converge in sgd, sam (" in sentence
    assert "; as far as it was measured, " in sentence


def test_rank_correlations_of_many_runs_take_little_memory_and_are_those_of_scipy():
    one, other = np.random.default_rng(0).normal(size=(2, 30, 900))
    other += one
    tracemalloc.start()
    found = rank_correlations(one, other)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    wanted = [np.array(stats.kendalltau(*pair))[0] for pair in zip(one, other, strict=True)]
    assert found.tolist() == pytest.approx(wanted)
    assert peak < 100e6  # all at once would be some 30 × 900² numbers of 8 bytes


def test_where_nobody_is_flattest_the_verdict_says_who_is_flatter_than_whom():
    random = np.random.default_rng(3)
    means = {"sgd": 9.0, "sam": 2.0, "gam": 2.0}
    entries = [
        Entry(
            f"{group}, seed {seed}", group, Report([Result("trace", float(value), 0.0)]), f"{seed}"
        )
        for group, mean in means.items()
        for seed, value in enumerate((mean + random.normal(0, 0.1, 5)).tolist())
    ]
    (sentence,) = Comparison(entries).statistics().verdict
    assert "nobody is flattest" in sentence
    assert sentence.endswith("sam and gam flatter than sgd")
