"""Does the theory of flatness hold at a checkpoint? A ladder of radii and a verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flatkit.analysis.curvature import top_eigenvalues
from flatkit.analysis.evaluation import evaluations, gradient_norm
from flatkit.analysis.flatness import flatness
from flatkit.analysis.session import Progress, Session
from flatkit.analysis.settings import AnalysisSettings
from flatkit.checkpoints import Checkpoint, load
from flatkit.objective import Objective
from flatkit.results import Report, Result, environment
from flatkit.spectrum import lanczos
from flatkit.task import Task

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
    """One radius: what was found, what the quadratic model says, both over ρ²."""

    rho: float
    r0: float
    r1: float
    model0: float
    model1: float

    @property
    def fits(self) -> bool:
        """Whether both searches are where the quadratic model is."""
        return (
            abs(self.r1 - self.model1) <= _PICTURE * self.model1
            and abs(self.r0 - self.model0) <= _PICTURE * self.model0
        )


def verify(
    subject: Task | Checkpoint | str | Path,
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
        subject: a `Task`, a `Checkpoint`, or the path of one.
        rho: the radii; by default nine, up to 5 % of the length of the weights.
        progress: see `analyze`.
        command: likewise.
        **changes: single settings of `AnalysisSettings` by name.

    Raises:
        as `analyze`.

    >>> from torch import nn
    >>> data = (torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [4.0]]))
    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> report = verify(Task(model, "mse", data), dtype="float64")
    >>> [claim["verdict"] for claim in report.result("verdict").value][:2]
    ['holds', 'holds']
    """
    if isinstance(subject, str | Path):
        subject = load(subject)
    task = subject if isinstance(subject, Task) else subject.task()
    given = {"rho": tuple(rho)} if rho else {}
    session = Session(task, AnalysisSettings(measures=_MEASURES, **given, **changes), progress)
    results = [*evaluations(session), *gradient_norm(session), *top_eigenvalues(session)]
    bottom = lanczos(
        session.hessian,
        which="smallest",
        tolerance=1e-2,
        max_matvecs=session.settings.max_matvecs,
        generator=session.generator("bottom"),
    )
    lowest = float(bottom.value[0])
    results.append(
        Result(
            "bottom_eigenvalues", [lowest], bottom.error.tolist(), "residual", status=bottom.status
        )
    )
    slope = max(float(session.top.value[0]), abs(lowest))
    blurred = _rounding_radius(session, task, slope)
    ladder = _ladder(session, blurred, rho)
    note = {"is": "below it, rounding may change R1 by more than 1 %"}
    results.append(Result("rounding_radius", blurred, settings=note))
    rungs: list[_Rung] = []
    if ladder:
        session.settings = replace(session.settings, rho=ladder)
        found = flatness(session)
        results += found
        rungs = _rungs(found)
    doubt = float(bottom.error[0])
    results.append(Result("verdict", _verdict(session, rungs, (lowest, doubt), slope, blurred)))
    return Report(
        results,
        checkpoint={"name": task.name} if isinstance(subject, Task) else subject.describe(),
        objective={**session.objective.describe(), "seed": session.settings.seed},
        command=command,
        environment=environment(),
    )


def _rounding_radius(session: Session, task: Task, slope: float) -> float:
    """Return the ρ below which rounding may change R1 by more than 1 %.

    The gradient's own rounding is what float32 and float64 differ by, scaled to the dtype in use;
    θ + δ is rounded too, by at most eps ‖θ‖, which moves the gradient by up to |λ|max times that.
    """
    own = session.objective
    eps = torch.finfo(own.dtype).eps
    single, double = (
        Objective(
            task.model,
            task.loss,
            task.data,
            samples=session.settings.samples,
            seed=session.settings.seed,
            batchnorm=session.settings.batchnorm,
            chunk_size=session.settings.chunk_size,
            dtype=dtype,
            device=own.device,
        ).gradient()
        for dtype in (torch.float32, torch.float64)
    )
    noise = float((single.double() - double).norm()) * eps / torch.finfo(torch.float32).eps
    length = float(own.theta.double().norm())
    return (noise / slope + eps * length) / _LIMIT if slope > 0 else math.inf


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
    return [
        _Rung(
            rho,
            by_measure["zeroth_order_sharpness"][rho].value / rho**2,
            r1.value / rho**2,
            by_measure["zeroth_order_sharpness"][rho].settings["quadratic_model"] / rho**2,
            by_measure["quadratic_model_maximum"][rho].value / rho**2,
        )
        for rho, r1 in sorted(by_measure["first_order_flatness"].items())
    ]


def _verdict(
    session: Session,
    rungs: list[_Rung],
    bottom: tuple[float, float],
    slope: float,
    blurred: float,
) -> list[dict[str, str]]:
    """Return the claims with their verdicts; `bottom` is the lowest eigenvalue and its residual."""
    lowest = bottom[0]
    top, norm = float(session.top.value[0]), float(session.gradient.double().norm())
    picture = _picture(rungs)
    # Below this radius the gradient that is left lifts R1/ρ² by more than 1 % of the curvature.
    lifted = norm / (_LIMIT * slope) if slope > 0 else math.inf
    left = f"‖∇L‖ = {norm:.2g} lifts R1/ρ² by more than 1 % below ρ = {lifted:.2g}"
    end = f"the quadratic picture ends at ρ = {picture[-1]:.2g}" if picture else "no radius fits"
    claims = [
        _claim("curvature was measured", slope > 0, f"λmax = {top:.4g}, lowest {lowest:.3g}"),
        _convexity(*bottom, slope),
    ]
    if not rungs:
        why = f"rounding: every radius is below ρ = {blurred:.2g}; float64 helps"
        names = ("gradient is negligible", "R0 ≤ R1", "R1/ρ² → λmax", "2 R0/ρ² → λmax")
        return claims + [_unknown(name, why) for name in (*names, "quadratic picture")]
    minimum = bool(picture) and lifted <= picture[-1]
    ordered = [rung.rho for rung in rungs if rung.r0 > rung.r1 * (1 + 1e-6)]
    claims += [
        _claim("gradient is negligible", minimum, f"{left}; {end}"),
        _claim("R0 ≤ R1", not ordered, f"the R1 search missed at ρ = {ordered}" if ordered else ""),
    ]
    for name, factor in (("R1/ρ² → λmax", 1), ("2 R0/ρ² → λmax", 2)):
        usable = [rung for rung in rungs if rung.rho >= factor * lifted and rung.rho in picture]
        if not usable or top < slope:
            reason = f"{left}; {end}" if not usable else "the largest |λ| belongs to a negative one"
            claims.append(_unknown(name, reason))
            continue
        value = usable[0].r1 if factor == 1 else 2 * usable[0].r0
        # What gradient is left may lift the value by as much again.
        allowed = _LIMIT + factor * norm / (usable[0].rho * top)
        reason = f"{value / top:.4f} × λmax at ρ = {usable[0].rho:.3g}, allowed ± {allowed:.1%}"
        claims.append(_claim(name, abs(value / top - 1) <= allowed, reason))
    reach = f"within 5 % for ρ from {picture[0]:.3g} to {picture[-1]:.3g}" if picture else end
    return [*claims, _claim("quadratic picture", bool(picture), reach)]


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
