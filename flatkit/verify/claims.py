"""Does the theory of flatness hold at a checkpoint? A ladder of radii and a verdict."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.checkpoints.task_file import as_task
from flatkit.errors import InvalidArgumentError
from flatkit.flatness.geometry import Geometry
from flatkit.measures.curvature import top_eigenvalues
from flatkit.measures.evaluation import evaluations, gradient_norm
from flatkit.measures.flatness import flatness
from flatkit.measures.precision import Jump, gradient_jump, gradient_noise, rounding_radius
from flatkit.measures.session import Progress, Session
from flatkit.measures.settings import AnalysisSettings
from flatkit.objective.task import Task
from flatkit.results import Report, Result, environment
from flatkit.spectrum import lanczos

Subject: TypeAlias = Task | Checkpoint | str | Path | Callable[[], Task]

_MEASURES = (
    "loss",
    "accuracy",
    "gradient_norm",
    "top_eigenvalues",
    "zeroth_order_sharpness",
    "first_order_flatness",
    "quadratic_model_maximum",
)
_LIMIT, _PICTURE = 0.01, 0.05
_STEPS, _LARGEST, _SPAN = 9, 0.05, 1e-4
"""Radii of the ladder; the largest, in lengths of the weights; the smallest, in largest ones."""


@dataclass(frozen=True)
class _Rung:
    """One radius: what was found, what the quadratic model says, both over ρ².

    `r0` is None where rounding of the loss is more than 1 % of R0.
    """

    rho: float
    r0: float | None
    r1: float
    model0: float
    model1: float

    @property
    def fits(self) -> bool:
        """Whether both searches are where the quadratic model is."""
        zeroth = self.r0 is None or abs(self.r0 - self.model0) <= _PICTURE * self.model0
        return zeroth and abs(self.r1 - self.model1) <= _PICTURE * self.model1


@dataclass(frozen=True)
class _Facts:
    """What the claims are judged by, beside the ladder."""

    top: float
    lowest: float
    lowest_error: float
    norm: float
    blurred: float
    jump: Jump

    @property
    def slope(self) -> float:
        """|λ|max."""
        return max(self.top, abs(self.lowest))

    @property
    def lifted(self) -> float:
        """The radius below which the gradient that is left lifts R1/ρ² by more than 1 %."""
        return self.norm / (_LIMIT * self.slope) if self.slope > 0 else math.inf


def verify(
    subject: Subject,
    *,
    rho: Sequence[float] = (),
    progress: Progress | None = None,
    command: Sequence[str] = (),
    **changes: Any,
) -> Report:
    """Measure R0 and R1 over a ladder of ρ and say which claims of the theory hold.

    The result `verdict` is a list of claims, each `holds`, `fails` or `cannot tell`, with the
    reason. Radii at which rounding may change R1 by more than 1 % are not measured; the result
    `rounding_radius` names the largest of them.

    Args:
        subject: a `Task` or what makes one, a `Checkpoint`, or the path of one.
        rho: the radii; by default nine, up to 5 % of the length of the weights.
        progress: see `analyze`.
        command: likewise.
        **changes: single settings of `AnalysisSettings` by name.

    Raises:
        as `analyze`.

    >>> import torch
    >>> from torch import nn
    >>> data = (torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [4.0]]))
    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> report = verify(Task(model, "mse", data), dtype="float64")
    >>> [claim["verdict"] for claim in report.result("verdict").value][:2]
    ['holds', 'holds']
    """
    task = subject() if callable(subject) else as_task(subject)
    given = {"rho": tuple(rho)} if rho else {}
    session = Session(task, AnalysisSettings(measures=_MEASURES, **given, **changes), progress)
    results, facts = _measure(session)
    ladder = _ladder(session, facts.blurred, rho)
    rungs: list[_Rung] = []
    if ladder:
        session.settings = replace(session.settings, rho=ladder)
        found = flatness(session)
        results += found
        rungs = _rungs(found)
    results.append(Result("verdict", _verdict(facts, rungs)))
    return Report(
        results,
        checkpoint={"name": task.name, **task.origin},
        objective={**session.objective.describe(), "seed": session.settings.seed},
        command=command,
        environment=environment(),
    )


def verify_series(
    subjects: Sequence[Subject],
    *,
    rho: Sequence[float] = (),
    **settings: Any,
) -> Iterator[Report]:
    """Verify the checkpoints of a series, all at the same radii, so that they can be compared.

    Where no radii are given, the last checkpoint chooses them. One at which rounding may change R1
    of an earlier checkpoint by more than 1 % is left out there.

    Args:
        subjects: in the order of the training, one at least.
        rho: the radii.
        **settings: see `verify`.

    Returns:
        The reports in the order of the subjects, each as soon as it is there (but the last is
        measured first if it chooses the radii).

    Raises:
        InvalidArgumentError: there is none. Further as `verify`.
    """
    if not subjects:
        raise InvalidArgumentError("verify needs at least one checkpoint or task, got none")
    *earlier, last = subjects
    final = None if rho else verify(last, **settings)
    if final is not None:
        rho = tuple(r.settings["rho"] for r in final.all("first_order_flatness"))
    for subject in earlier:
        yield verify(subject, rho=rho, **settings)
    yield final if final is not None else verify(last, rho=rho, **settings)


def _measure(session: Session) -> tuple[list[Result], _Facts]:
    """Measure what the ladder and the claims need at the checkpoint itself."""
    results = [*evaluations(session), *gradient_norm(session), *top_eigenvalues(session)]
    bottom = lanczos(
        session.hessian,
        which="smallest",
        tolerance=1e-2,
        max_matvecs=session.settings.max_matvecs,
        generator=session.generator("bottom"),
    )
    lowest, top = float(bottom.value[0]), float(session.top.value[0])
    slope, round_ball = max(top, abs(lowest)), Geometry("l2")
    noise = gradient_noise(session, round_ball)
    jump = gradient_jump(session, noise)
    facts = _Facts(
        top=top,
        lowest=lowest,
        lowest_error=float(bottom.error[0]),
        norm=float(session.gradient.double().norm()),
        blurred=rounding_radius(session, round_ball, slope, noise),
        jump=jump,
    )
    note = {"is": "below it, rounding may change R1 by more than 1 %"}
    change = {"distance": jump.distance, "explained": jump.explained, "kink": jump.found}
    return [
        *results,
        Result(
            "bottom_eigenvalues", [lowest], bottom.error.tolist(), "residual", status=bottom.status
        ),
        Result("rounding_radius", facts.blurred, settings=note),
        Result("gradient_jump", jump.size, settings=change),
    ], facts


def _ladder(session: Session, blurred: float, rho: Sequence[float]) -> tuple[float, ...]:
    if rho:
        return tuple(radius for radius in session.settings.rho if radius >= blurred)
    largest = _LARGEST * float(session.objective.theta.double().norm()) or 0.1
    smallest = max(blurred, _SPAN * largest)
    if smallest >= largest:
        return ()
    steps = (smallest * (largest / smallest) ** (k / (_STEPS - 1)) for k in range(_STEPS))
    return tuple(float(f"{step:.3g}") for step in steps if float(f"{step:.3g}") >= blurred)


def _rungs(results: Sequence[Result]) -> list[_Rung]:
    by_measure: dict[str, dict[float, Result]] = {}
    for result in results:
        by_measure.setdefault(result.measure, {})[result.settings["rho"]] = result
    rungs = []
    for rho, r1 in sorted(by_measure["first_order_flatness"].items()):
        r0 = by_measure["zeroth_order_sharpness"][rho]
        rungs.append(
            _Rung(
                rho,
                None if r0.status == "rounding" else r0.value / rho**2,
                r1.value / rho**2,
                r0.settings["quadratic_model"] / rho**2,
                by_measure["quadratic_model_maximum"][rho].value / rho**2,
            )
        )
    return rungs


def _verdict(facts: _Facts, rungs: list[_Rung]) -> list[dict[str, str]]:
    """Return the claims with their verdicts."""
    picture = _picture(rungs)
    found = f"λmax = {facts.top:.4g}, lowest {facts.lowest:.3g}"
    claims = [
        _claim("curvature was measured", facts.slope > 0, found),
        _convexity(facts.lowest, facts.lowest_error, facts.slope),
        _smoothness(facts.jump),
    ]
    if not rungs:
        why = f"rounding: every radius is below ρ = {facts.blurred:.2g}; float64 helps"
        names = ("gradient is negligible", "R0 ≤ R1", "R1/ρ² → λmax", "2 R0/ρ² → λmax")
        return claims + [_unknown(name, why) for name in (*names, "quadratic picture")]
    left, end = _remaining(facts), _reach(picture)
    minimum = bool(picture) and facts.lifted <= picture[-1]
    return [
        *claims,
        _claim("gradient is negligible", minimum, f"{left}; {end}"),
        _ordered(rungs),
        *(_limit(name, facts, rungs, picture) for name in ("R1/ρ² → λmax", "2 R0/ρ² → λmax")),
        _claim("quadratic picture", bool(picture), end),
    ]


def _limit(name: str, facts: _Facts, rungs: list[_Rung], picture: list[float]) -> dict[str, str]:
    """Hold the smallest radius at which the gradient does not matter against λmax."""
    factor = 1 if name.startswith("R1") else 2
    usable = [
        (rung.rho, factor * value)
        for rung in rungs
        if rung.rho >= factor * facts.lifted
        and rung.rho in picture
        and (value := rung.r1 if factor == 1 else rung.r0) is not None
    ]
    if facts.top < facts.slope:
        return _unknown(name, "the largest |λ| belongs to a negative one")
    if not usable:
        return _unknown(name, f"{_remaining(facts)}; {_reach(picture)}")
    rho, value = usable[0]
    # What gradient is left may lift the value by as much again.
    allowed = _LIMIT + factor * facts.norm / (rho * facts.top)
    reason = f"{value / facts.top:.4f} × λmax at ρ = {rho:.3g}, allowed ± {allowed:.1%}"
    return _claim(name, abs(value / facts.top - 1) <= allowed, reason)


def _ordered(rungs: list[_Rung]) -> dict[str, str]:
    """Compare R0 and R1 where both are more than rounding."""
    both = [rung for rung in rungs if rung.r0 is not None]
    wrong = [f"{rung.rho:.3g}" for rung in both if (rung.r0 or 0.0) > rung.r1 * (1 + 1e-6)]
    if not both:
        return _unknown("R0 ≤ R1", "rounding of the loss hides R0 at every radius; float64 helps")
    reason = f"the R1 search missed at ρ = {', '.join(wrong)}" if wrong else ""
    return _claim("R0 ≤ R1", not wrong, reason)


def _smoothness(jump: Jump) -> dict[str, str]:
    """Say whether the gradient jumps at the checkpoint."""
    name = "smooth at the checkpoint"
    if jump.found:
        return _claim(
            name,
            False,
            f"a kink: ∇L changes by {jump.size:.2g} within ρ = {jump.distance:.1g}, whatever the "
            "step; R1/ρ² grows without limit as ρ → 0",
        )
    return _claim(name, True, f"∇L does not jump within ρ = {jump.distance:.1g}")


def _remaining(facts: _Facts) -> str:
    return f"‖∇L‖ = {facts.norm:.2g} lifts R1/ρ² by more than 1 % below ρ = {facts.lifted:.2g}"


def _reach(picture: list[float]) -> str:
    """Say in which radii the quadratic picture holds."""
    if not picture:
        return "the quadratic model is more than 5 % off at the smallest ρ already"
    return (
        f"the quadratic picture holds within 5 % for ρ from {picture[0]:.3g} to {picture[-1]:.3g}"
    )


def _convexity(lowest: float, residual: float, slope: float) -> dict[str, str]:
    """Judge by the lowest Ritz value, above which the lowest eigenvalue cannot lie.

    Below it, it may lie by more than the residual if Lanczos has missed it, so that the claim is
    about more than 1 % of the largest curvature.
    """
    name = "no negative curvature"
    found = f"lowest eigenvalue at most {lowest:.3g}, residual {residual:.1g}"
    if lowest < -_LIMIT * slope:
        return _claim(name, False, found)
    if lowest - residual < -_LIMIT * slope:
        return _unknown(name, f"{found}, which is more than 1 % of |λ|max")
    return _claim(name, True, f"{found}: none below −1 % of |λ|max was found")


def _picture(rungs: Sequence[_Rung]) -> list[float]:
    """Return the radii, from the smallest on without a gap, at which the quadratic model fits."""
    fitting = []
    for rung in rungs:
        if not rung.fits:
            break
        fitting.append(rung.rho)
    return fitting


def _claim(name: str, holds: bool, reason: str) -> dict[str, str]:
    return {"claim": name, "verdict": "holds" if holds else "fails", "reason": reason}


def _unknown(name: str, reason: str) -> dict[str, str]:
    return {"claim": name, "verdict": "cannot tell", "reason": reason}
