"""What a page says in words: a summary of one report, what did not converge, how to read."""

from collections.abc import Sequence
from dataclasses import dataclass

from flatkit.comparison.readings import compared
from flatkit.measures.reading import Reading
from flatkit.measures.registry import MEASURES
from flatkit.render.notation import significant
from flatkit.render.readings import error_text, value_text
from flatkit.render.samples import subsets
from flatkit.results.comparison import Comparison
from flatkit.results.report import Report
from flatkit.results.status import Status, advice, in_words


@dataclass(frozen=True)
class Ended:
    """How measurements ended that did not converge.

    Attributes:
        status: in words.
        advice: what it means and what helps.
        what: the measurements, a line each.
    """

    status: str
    advice: str
    what: Sequence[str]


@dataclass(frozen=True)
class Guide:
    """How to read a measure.

    Attributes:
        name: of the measure.
        help: what it is, in a line.
        about: how to read it.
    """

    name: str
    help: str
    about: str


def summary(report: Report) -> list[str]:
    """Return what a report says, in sentences.

    >>> from flatkit.results.result import Result
    >>> for line in summary(Report([Result("top_eigenvalues", [2.5], [1e-4], "residual")])):
    ...     print(line)
    The top eigenvalue λmax is 2.5000 (residual 1e-4).
    Every measurement did what it was asked for.
    """
    found = list(compared(report).values())
    lines = [_fits(found), *(_sentence(one) for one in _telling(found)), _theory(found)]
    ended = sum(result.status == Status.CONVERGED for result in report)
    total = len(report.results)
    if ended == total:
        lines.append("Every measurement did what it was asked for." if total else "")
    else:
        lines.append(
            f"{total - ended} of {total} measurements did not converge; what that means for their "
            "numbers stands under “What to beware of”."
        )
    return [line for line in lines if line]


def _fits(found: Sequence[Reading]) -> str:
    told = [f"{one.title} {value_text(one)}" for one in found if one.key in _FIT]
    return f"The network fits with {', '.join(told)}." if told else ""


_FIT = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")


def _telling(found: Sequence[Reading]) -> list[Reading]:
    """Return a reading for each measure of flatness: that of the largest radius."""
    last: dict[str, Reading] = {}
    for one in found:
        if one.role == "flatness":
            # They come by radius, so that the last is the largest.
            last[one.measure] = one
    return list(last.values())


def _sentence(one: Reading) -> str:
    value, error = value_text(one), error_text(one)
    if one.error_kind == "lower_bound":
        value = f"at least {value.removeprefix('≥ ')}"
        error = f"{one.remark}; a lower bound" if one.remark else "a lower bound"
    elif one.error_kind == "exact":
        error = "exact over these samples"
    open_end = "" if one.converged else f"; not converged: {in_words(one.status)}"
    the = "The " if one.title[0].islower() else ""  # a symbol has no article
    return f"{the}{one.title} is {value} ({error}{open_end})."


def _theory(found: Sequence[Reading]) -> str:
    """Return what R1/ρ² beside λmax says of the smallest ball, where both are known."""
    top = next((one for one in found if one.key == "top_eigenvalues"), None)
    # R1/ρ² tends to λmax in round balls alone; in others it does to another maximum of curvature.
    ball = next((one for one in found if one.title.startswith("R1/ρ²") and one.is_round), None)
    if top is None or ball is None or top.value <= 0 or ball.rho is None:
        return ""
    ratio = ball.value / top.value
    said = f"In the smallest ball, of ρ = {ball.rho:g}, R1/ρ² is {ratio:.2f} × λmax"
    if 0.9 <= ratio <= 1.1:
        return f"{said}, as the theory says of a minimum: two ways of computing agree."
    norm = next((one.value for one in found if one.key == "gradient_norm"), 0.0)
    lift = norm / ball.rho
    # On a quadratic R1/ρ² ≤ λmax + ‖∇L‖/ρ.
    if ratio > 1 and ball.value <= 1.1 * (top.value + lift):
        return (
            f"{said}: the checkpoint is not quite a minimum, and the gradient that is left "
            f"lifts R1/ρ² by up to ‖∇L‖/ρ = {significant(lift, 3)}."
        )
    return (
        f"{said}, away from the 1 of a minimum with a quadratic loss: the ball reaches beyond the "
        "quadratic part, or the search did not find the maximum."
    )


def unconverged(comparison: Comparison) -> list[Ended]:
    """Return how measurements ended that did not converge, by how.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.result import Result
    >>> report = Report([Result("trace", 1.0, 0.2, "standard_error", status="budget")])
    >>> [(one.status, one.what) for one in unconverged(Comparison([Entry("a", "a", report)]))]
    [('budget', ['a: trace'])]
    """
    found: dict[str, list[str]] = {}
    for entry in comparison.entries:
        for result in entry.report:
            if result.status != Status.CONVERGED:
                rho = result.settings.get("rho")
                at = f", ρ = {rho:g}" if isinstance(rho, int | float) else ""
                what = f"{entry.name}: {result.measure.replace('_', ' ')}{at}"
                found.setdefault(str(result.status), []).append(what)
    return [Ended(in_words(status), advice(status), what) for status, what in found.items()]


def part_of_the_samples(comparison: Comparison) -> list[str]:
    """Return in sentences where a part of the samples stands for all.

    >>> from flatkit.results.comparison import Entry
    >>> part = Report([], objective={"samples": 5, "samples_available": 9, "drawn": "random"})
    >>> part_of_the_samples(Comparison([Entry("a", "a", part)]))
    ['The numbers hold for 5 of 9 training samples, drawn at random.']
    """
    parts = (" and ".join(subsets(entry.report.objective)) for entry in comparison.entries)
    return [f"The numbers hold for {part}." for part in dict.fromkeys(parts) if part]


def remarks(comparison: Comparison) -> list[str]:
    """Return what measures say of their results in words, each once.

    >>> remarks(Comparison([]))
    []
    """
    lines: dict[str, None] = {}
    for entry in comparison.entries:
        for result in entry.report:
            if result.measure in MEASURES:
                lines |= dict.fromkeys(MEASURES[result.measure].remarks(result))
            engine = result.settings.get("engine_remark")
            lines |= {engine: None} if isinstance(engine, str) else {}
    return list(lines)


def guides(comparison: Comparison) -> list[Guide]:
    """Return how to read each measure that stands in a page.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.result import Result
    >>> [one.help for one in guides(Comparison([Entry("a", "a", Report([Result("trace", 1.0)]))]))]
    ['trace of the Hessian']
    """
    measured = {result.measure for entry in comparison.entries for result in entry.report}
    return [
        Guide(name.replace("_", " "), MEASURES[name].help, MEASURES[name].about)
        for name in MEASURES
        if name in measured
    ]
