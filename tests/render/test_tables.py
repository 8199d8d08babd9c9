"""Tables: digits that agree with the errors, marks only beyond the spread, nothing hidden."""

import io
import random
import statistics
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from flatkit.errors import ResultError
from flatkit.render import (
    comparison_markdown,
    comparison_rows,
    comparison_table,
    objective_differences,
    report_table,
    track_table,
)
from flatkit.render.notation import at_least, bound, significant, to_error, with_spread
from flatkit.render.readings import readings
from flatkit.render.tables.study import claims_table
from flatkit.results import Comparison, Cost, Entry, Report, Result
from flatkit.studies.claims import Asked, decide

OBJECTIVE = {
    "samples": 1000,
    "samples_available": 1438,
    "indices_sha256": "ab" * 32,
    "loss": "cross_entropy",
    "batchnorm": "eval",
    "dtype": "float64",
    "device": "cpu",
    "parameters": 9034,
}


def report(top=3.0, residual=1e-4, trace=24.0, trace_error=0.5, r1=0.031, status="converged", **at):
    return Report(
        [
            Result("loss", 0.512345, 0.0, settings={"split": "train"}),
            Result("accuracy", 0.955, 0.0, settings={"split": "test"}),
            Result("gradient_norm", 0.0212, 0.0, settings={"split": "train"}),
            Result(
                "top_eigenvalues", [top, top / 2], [residual, residual], "residual", status=status
            ),
            Result("trace", trace, trace_error, "standard_error", cost=Cost(matvecs=278)),
            Result("first_order_flatness", r1, None, "lower_bound", settings={"rho": 0.1}),
        ],
        checkpoint={"name": "gam", "path": "runs/gam/ckpt.pt", "epoch": 60, "optimizer": "gam"},
        objective={**OBJECTIVE, **at},
    )


def alone(**reports):
    return Comparison([Entry(name, name, found) for name, found in reports.items()])


def grouped(**groups):
    return Comparison(
        [
            Entry(f"{group}, seed {seed}", group, found)
            for group, runs in groups.items()
            for seed, found in enumerate(runs)
        ]
    )


def text_of(renderable, width=80):
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return stream.getvalue()


def flattest(comparison, key="top_eigenvalues"):
    return [row["name"] for row in comparison_rows(comparison) if row[f"{key}_flattest"]]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (123.456, 2.34, "123.5 ± 2.3"),
        (0.123456, 0.00023, "0.12346 ± 0.00023"),
        (12345.0, 210.0, "12340 ± 210"),
        (123456.0, 2100.0, "(1.235 ± 0.021)e5"),
        (1.2345e-6, 3.2e-8, "(1.234 ± 0.032)e-6"),
        (3.0, 12.0, "3 ± 12"),
        (-0.51, 0.083, "-0.510 ± 0.083"),
        (0.0, 0.01, "0.000 ± 0.010"),
    ],
)
def test_value_and_spread_end_at_the_same_decimal(value, error, text):
    assert with_spread(value, error) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(10.0, 1.0, "10"), (2.451049, 8e-5, "2.45105"), (12.345678, 3e-9, "12.3457")],
)
def test_a_value_has_no_digits_that_its_residual_does_not_support(value, error, text):
    assert to_error(value, error, digits=1) == text


def test_rounding_never_turns_a_bound_into_a_false_statement():
    source = random.Random(0)
    for _ in range(2000):
        value = source.choice([-1, 1]) * 10 ** source.uniform(-12, 12)
        assert float(at_least(value).removeprefix("≥ ")) <= value * (1 + 1e-11)
        assert float(bound(abs(value))) >= abs(value)
        assert float(significant(value, 4)) == pytest.approx(value, rel=6e-4)


def test_the_report_says_which_function_was_measured_and_every_error():
    text = " ".join(text_of(report_table(report())).split())
    for part in (
        "mean cross_entropy over 1,000 of 1,438 training samples, BatchNorm eval, float64",
        "P = 9,034 parameters",
        "! 1,000 of 1,438 training samples, drawn at random: the numbers hold for these",
        "top eigenvalue λmax 3.0000 residual 1e-4 converged",
        "eigenvalue λ2 1.5000",
        "trace tr H 24.00 ± 0.50 converged 0 0 278",
        "train loss 0.5123 exact",
        "test accuracy (%) 95.50 exact",
        "R1 (ρ = 0.1) ≥ 0.0310 lower bound",
        "R1/ρ² (ρ = 0.1) ≥ 3.10 lower bound",
    ):
        assert part in text, part


def test_a_status_other_than_converged_is_visible_and_explained():
    text = text_of(report_table(report(status="budget")))
    assert "! budget" in text and "ran out" in text
    assert "!" not in text_of(report_table(report(samples=1438)))
    assert "! odd reason" in text_of(report_table(report(status="odd_reason")))


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ((500, 50_000, "random"), (1000, 10_000, "random"), "! 500 of 50,000 training samples, "
         "drawn at random and 1,000 of 10,000 test samples, drawn at random: the numbers"),
        ((500, None, "first"), None, "! the first 500 training samples: the numbers"),
        ((9, 9, "all"), (3, 10_000, "random"), "! 3 of 10,000 test samples, drawn"),
    ],
)  # fmt: skip
def test_the_samples_of_both_splits_are_named_in_numbers(train, test, words):
    keys = ("samples", "samples_available", "drawn")
    objective: dict[str, Any] = dict(zip(keys, train, strict=True))
    if test:
        objective["test"] = dict(zip(keys, test, strict=True))
    found = Report([Result("loss", 0.5, 0.0)], objective=objective)
    text = " ".join(text_of(report_table(found)).split())
    assert words in text and "%" not in text
    assert ("test data: " in text) == bool(test)


def test_balls_of_another_shape_are_named_and_never_compared_with_round_ones():
    shared = {"rho": 0.1, "frozen_parameters": 1234}
    found = [
        Result("first_order_flatness", 0.03, error_kind="lower_bound", settings=settings)
        for settings in ({**shared, "geometry": "l2"}, {**shared, "geometry": "adaptive"})
    ]
    runs = Report(found)
    text = " ".join(text_of(report_table(runs)).split())
    assert "R1 (ρ = 0.1) ≥ 0.0300" in text and "R1 (ρ = 0.1, adaptive) ≥ 0.0300" in text
    assert "divided by |θ|" in text and "1,234 of the parameters have length 0" in text
    assert len({reading.key for result in found for reading in readings(result)}) == 4
    assert "|θ|" not in text_of(report_table(Report(found[:1])))


@pytest.mark.parametrize("width", [80, 100, 200])
def test_tables_fit_the_width_and_are_plain_text_away_from_a_terminal(width):
    runs = [report(top=3.0 + seed, dtype=f"float{seed}") for seed in range(3)]
    for table in (report_table(runs[0]), comparison_table(grouped(gam=runs, sgd=runs[:1]))):
        text = text_of(table, width)
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [40, 80, 300])
def test_no_column_is_lost_whatever_the_width(width):
    runs = [report(top=3.0 + 0.1 * seed, trace=20.0 + seed) for seed in range(3)]
    text = text_of(comparison_table(grouped(gam=runs, sgd=runs)), width)
    for cell in ("3.10 ± 0.10", "21.0 ± 1.0", "95.50 ± 0", "0.5123 ± 0", "3.100 ± 0"):
        assert text.count(cell) == 2, cell
    assert (text.count("gam") == 1) == (width == 300)  # else further tables repeat the names


def test_groups_are_means_with_the_standard_deviation_over_their_runs():
    tops = [2.0, 2.5, 4.0]
    row = comparison_rows(grouped(gam=[report(top=top) for top in tops], sgd=[report()]))[0]
    assert row["name"] == "gam" and row["runs"] == 3
    assert row["top_eigenvalues"] == pytest.approx(17 / 6)
    assert row["top_eigenvalues_spread"] == pytest.approx(statistics.stdev(tops))
    assert row["spread_is"] == "standard deviation over runs"
    assert row["first_order_flatness_over_rho_squared[rho=0.1]"] == pytest.approx(3.1)
    assert row["test_accuracy"] == pytest.approx(95.5)


def test_runs_that_share_their_probes_are_not_taken_for_better_known_than_they_are():
    runs = [report(trace=20.0 + 0.01 * seed, trace_error=3.0) for seed in range(3)]
    lower = [report(trace=18.0 + 0.01 * seed, trace_error=3.0) for seed in range(3)]
    comparison = grouped(sgd=runs, gam=lower)
    assert comparison_rows(comparison)[0]["trace_spread"] == pytest.approx(3.0)
    assert flattest(comparison, "trace") == []


@pytest.mark.parametrize(
    ("gam", "sgd", "marked"),
    [
        ([2.0, 2.1, 2.2], [5.0, 5.1, 5.2], ["gam"]),
        ([5.0, 5.1, 5.2], [2.0, 2.1, 2.2], ["sgd"]),
        ([2.0, 2.1, 5.05], [5.0, 5.1, 5.2], []),  # one run among the others
        ([2.0, 2.1, 3.9], [4.0, 4.1, 6.0], []),  # apart, but within the spread
        ([2.0, 2.1], [5.0, 5.1], []),  # two runs say too little
        ([2.0, 2.1, 2.2], [5.0], []),  # the spread of one run is not known
        ([2.0, 2.1, 2.2], [2.0, 2.1, 2.2], []),
    ],
)
def test_a_group_is_flattest_only_beyond_the_spread(gam, sgd, marked):
    groups = {"gam": [report(top=top) for top in gam], "sgd": [report(top=top) for top in sgd]}
    comparison = grouped(**groups)
    assert flattest(comparison) == marked
    assert ("*" in text_of(comparison_table(comparison))) == bool(marked)


def test_a_third_group_within_the_spread_takes_the_mark_away():
    groups = {
        name: [report(top=top + 0.1 * seed) for seed in range(3)]
        for name, top in {"sgd": 9.0, "sam": 2.05, "gam": 2.0}.items()
    }
    assert flattest(grouped(**groups)) == []


def test_single_runs_are_told_apart_by_their_errors_and_lower_bounds_never():
    assert flattest(alone(sgd=report(top=9.0), gam=report(top=2.0))) == ["gam"]
    assert flattest(alone(sgd=report(top=2.3, residual=0.2), gam=report(top=2.0))) == ["gam"]
    assert flattest(alone(sgd=report(top=2.1, residual=0.2), gam=report(top=2.0))) == []
    assert flattest(alone(sgd=report(trace=26.0), gam=report(trace=24.1)), "trace") == []
    assert flattest(alone(sgd=report(trace=26.2), gam=report(trace=24.1)), "trace") == ["gam"]
    key = "first_order_flatness_over_rho_squared[rho=0.1]"
    assert flattest(alone(sgd=report(r1=0.9), gam=report(r1=0.1)), key) == []


def test_accuracy_and_loss_are_never_called_flat():
    low, high = (
        Report([Result("loss", loss, 0.0), Result("accuracy", loss, 0.0)]) for loss in (0.1, 0.9)
    )
    assert "*" not in text_of(comparison_table(alone(a=low, b=high)))
    for row in comparison_rows(alone(a=low, b=high)):
        assert not row["train_loss_flattest"] and not row["train_accuracy_flattest"]


def test_what_did_not_converge_is_named_and_takes_the_mark_away():
    comparison = alone(sgd=report(top=9.0), gam=report(top=2.0, status="budget"))
    assert flattest(comparison) == []
    text = text_of(comparison_table(comparison))
    assert "2.0000!" in text and "not converged: gam: top eigenvalue λmax (budget)" in text
    assert "2.0000!" in comparison_markdown(comparison)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"loss": "mse"}, "loss: cross_entropy (a), mse (b)"),
        ({"dtype": "float32"}, "dtype: float64 (a), float32 (b)"),
        ({"indices_sha256": "cd" * 32}, "which samples (sha256): abab"),
        ({"batchnorm": "train"}, "batchnorm: eval (a), train (b)"),
        ({"parameters": 5}, "parameters: 9034 (a), 5 (b)"),
    ],
)
def test_different_functions_are_flagged_and_never_ranked(change, named):
    comparison = alone(a=report(top=9.0), b=report(top=2.0, **change))
    assert any(line.startswith(named) for line in objective_differences(comparison))
    assert flattest(comparison) == []
    for text in (text_of(comparison_table(comparison), 200), comparison_markdown(comparison)):
        assert "do not compare" in text and named in text


def test_other_data_of_the_same_size_are_another_function():
    one, other = (
        Report(
            report().results,
            checkpoint={"data": {"name": "digits", "kwargs": {}, "sha256": digest * 16}},
            objective=OBJECTIVE,
        )
        for digest in ("1a2b", "3c4d")
    )
    (line,) = objective_differences(alone(a=one, b=other))
    assert line.startswith("data: digits, sha256 1a2b") and "3c4d" in line
    assert objective_differences(alone(a=one, b=one)) == []


def test_the_device_does_not_make_another_function():
    assert objective_differences(alone(a=report(), b=report(device="cuda"))) == []


def test_chunks_make_another_function_where_statistics_of_batches_depend_on_them():
    for mode, lines in (("eval", []), ("train", ["chunk_size: 8 (a), 16 (b)"])):
        one, other = (report(batchnorm=mode, chunk_size=size) for size in (8, 16))
        assert objective_differences(alone(a=one, b=other)) == lines


def test_what_only_some_runs_measured_is_named_not_dropped_in_silence():
    less = Report(report().results[:-1], objective=OBJECTIVE)
    text = text_of(comparison_table(alone(a=report(), b=less)), 120)
    assert "left out: R1/ρ² (ρ = 0.1)" in text


def test_markdown_has_a_line_for_each_run_and_a_column_for_each_quantity():
    runs = alone(**{"a|b": report(top=1.0), "c": report(), "d": report(trace=1e6, r1=123456.0)})
    text = comparison_markdown(runs)
    *tables, notes = text.split("\n\n")
    lines = notes.splitlines()
    assert len(tables) == 1 and "| **1.0000** |" in tables[0]
    rows = [line.replace("\\|", "") for line in tables[0].splitlines()]
    assert [row.split(" | ")[0] for row in rows] == ["| run", "| :--", "| ab", "| c", "| d"]
    assert len({row.count("|") for row in rows}) == 1
    assert "- bold: flattest, beyond all errors that are known" in lines


def test_names_that_look_like_markup_are_printed_as_they_are():
    odd = Report([Result("[bold]new measure", 1.0)], checkpoint={"name": "[red]gam[/red]"})
    assert "[red]gam[/red]" in text_of(report_table(odd))
    assert "[bold]new measure" in text_of(report_table(odd))
    comparison = alone(**{"[red]gam[/red]": report()})
    assert "[red]gam[/red]" in text_of(comparison_table(comparison))


@pytest.mark.parametrize(
    "result",
    [
        Result("loss", "high"),
        Result("first_order_flatness", 0.5, error_kind="lower_bound"),
        Result("first_order_flatness", 0.5, error_kind="lower_bound", settings={"rho": 0.0}),
        Result("top_eigenvalues", [2.0, 1.0], [0.1], "residual"),
    ],
)
def test_malformed_results_are_an_error_that_names_the_measure(result):
    with pytest.raises(ResultError, match=result.measure):
        readings(result)


def test_an_empty_comparison_is_an_error():
    with pytest.raises(ResultError, match="no run"):
        comparison_table(Comparison([]))


def test_layers_density_and_cross_check_are_in_the_table_with_their_own_errors():
    layers = Result(
        "layer_curvature",
        {"layer": ["hidden1", "output"], "parameters": [9, 3], "top": [2.0, 1.0], "trace": [5, 4]},
        {"top": [1e-3, 2e-3], "trace": [0.1, 0.2]},
        "standard_error",
    )
    density = Result(
        "spectral_density",
        {"eigenvalue": [0.0, 1.0], "density": [1.0, 1.0]},
        {"density": [0.1, 0.1]},
        "standard_error",
        settings={"mean": 0.25, "mean_error": 0.01, "mass": 1.0},
    )
    check = Result(
        "cross_check",
        {"flatkit": [2.0], "pyhessian": [1.9]},
        {"flatkit": [1e-4], "pyhessian": [0.01]},
        "residual",
        status="disagreement",
        settings={"explanation": ["eigenvalue 1: it stops before it is right"]},
    )
    found = [reading for result in (layers, density, check) for reading in readings(result)]
    assert [(r.title, r.value, r.error, r.error_kind) for r in found] == [
        ("λmax of hidden1", 2.0, 1e-3, "residual"),
        ("λmax of output", 1.0, 2e-3, "residual"),
        ("trace of hidden1", 5, 0.1, "standard_error"),
        ("trace of output", 4, 0.2, "standard_error"),
        ("mean of the density", 0.25, 0.01, "standard_error"),
        ("mass of the density", 1.0, 0.0, "exact"),
        ("λ1 by flatkit", 2.0, 1e-4, "residual"),
        ("λ1 by PyHessian", 1.9, 0.01, "residual"),
    ]
    stream = io.StringIO()
    Console(file=stream, width=120).print(report_table(Report([layers, density, check])))
    text = stream.getvalue()
    assert "it stops before it is right" in text and "see figures" not in text
    assert "differ by more than their residuals allow" in text


@pytest.mark.parametrize("width", [36, 40, 50, 66, 80, 120])
def test_no_table_cuts_a_number_or_leaves_out_a_name_however_narrow_the_terminal(width):
    def run(epoch):
        flat = [
            Result("first_order_flatness", 1.234 * rho**2, None, "lower_bound",
                   settings={"rho": rho, "value_over_rho_squared": 1.234})
            for rho in (0.01, 0.02, 0.05, 0.1)
        ]  # fmt: skip
        top = Result("top_eigenvalues", [3.217], [0.01], "residual", status="budget")
        trace = Result("trace", 15.33, 0.29, "standard_error")
        about = {"path": f"gam/{epoch}.pt", "epoch": epoch}
        results = [Result("loss", 0.8687, 0.0, settings={"split": "train"}), top, trace, *flat]
        return Report(results, checkpoint=about)

    def words(shown):
        console = Console(file=io.StringIO(), width=width)
        console.print(shown)
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert max(map(cell_len, text.splitlines())) <= width
        return " ".join(text.split())

    asked = Asked("", "sam", "sgd", "flatter: trace tr H", "flatter", [0.9, 1.1, 1.0], "ratio", 0.1)
    told = words(claims_table(decide([asked])))
    assert all(part in told for part in ("holds", "0.368 times", "0.287", "0.472"))
    told = words(report_table(run(1)))
    for part in ("train loss", "trace tr H", "15.33", "± 0.29", "budget", "0.8687", "Hv"):
        assert part in told
    entries = [Entry(f"gam, {n}", "gam", run(n), epoch=n) for n in (1, 2)]
    told = words(track_table(Comparison(entries)))
    assert told.count("≥ 1.23") == 8 and told.count("15.33 ± 0.29") == 2 and "1.…" not in told
