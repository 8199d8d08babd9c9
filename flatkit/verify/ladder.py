"""R0 and R1 over a ladder of radii beside the top eigenvalue: what the claims are judged by."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.checkpoints.task_file import as_task
from flatkit.devices import ordinary_torch
from flatkit.errors import InvalidArgumentError
from flatkit.flatness.geometry import Geometry
from flatkit.measures import (
    first_order_flatness,
    quadratic_model_maximum,
    zeroth_order_sharpness,
)
from flatkit.measures.forecast import Forecast, forecast_of
from flatkit.measures.precision import (
    exactness,
    gradient_jump,
    gradient_noise,
    rounding_radius,
)
from flatkit.measures.registry import MEASURES
from flatkit.measures.schedule import run_whole
from flatkit.measures.session import Progress, Session
from flatkit.measures.settings import AnalysisSettings
from flatkit.measures.shared_settings import BallSettings, CurvatureSettings
from flatkit.objective.narrowing import narrow_words
from flatkit.objective.task import Task
from flatkit.results.report import Report
from flatkit.results.result import Result
from flatkit.results.status import Status
from flatkit.spectrum.lanczos import lanczos
from flatkit.verify.claims import Facts, Rung, judge

Subject: TypeAlias = Task | Checkpoint | str | Path | Callable[[], Task]

_AT_CHECKPOINT = ("loss", "accuracy", "gradient_norm", "top_eigenvalues")
_LOWEST = 2e-3
"""Tolerance of the lowest eigenvalue: well below the 1 % of |λ|max that a claim is about."""
_STEPS, _LARGEST, _SPAN = 9, 0.05, 1e-4
"""Radii of the ladder; the largest, in lengths of the weights; the smallest, in largest ones."""


@ordinary_torch()
def verify(
    subject: Subject,
    *,
    rho: Sequence[float] = (),
    progress: Progress | None = None,
    plan: Callable[[Forecast], object] | None = None,
    command: Sequence[str] = (),
    **changes: Any,
) -> Report:
    """Measure R0 and R1 over a ladder of ρ and say which claims of the theory hold.

    The result `verdict` is a list of claims, each `holds`, `fails` or `cannot tell`, with the
    reason. Radii at which rounding may change R1 by more than 1 % are not measured; the result
    `rounding_radius` names the largest of them. What 16 bits may have put off λmax, the gradient
    and the quadratic model is part of what a claim allows for, and named in its reason; a claim
    that it leaves open cannot be told.

    Args:
        subject: a `Task` or what makes one, a `Checkpoint`, or the path of one.
        rho: the radii; by default nine, up to 5 % of the length of the weights.
        progress: called as the measures advance, with name, steps done and steps in all.
        plan: called before the first pass with what all of it will take.
        command: kept in the report.
        **changes: single settings of `AnalysisSettings` by name.

    Raises:
        InvalidArgumentError: another geometry than `l2`, which the claims are not about. Further
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
    settings = AnalysisSettings(measures=_AT_CHECKPOINT, **given).changed(changes)
    if settings.of(BallSettings).geometry != "l2":
        raise InvalidArgumentError("verify is about round balls: geometry must be l2")
    session = Session(task, settings, progress)
    if plan is not None:
        plan(_forecast(session, len(rho) or _STEPS))
    results, facts = _at_checkpoint(session)
    rungs: list[Rung] = []
    radii = _radii(session, facts.blurred, rho)
    for done, radius in enumerate(radii):
        session.report("flatness", done, len(radii))
        found = _at_radius(session, radius)
        results += found
        rungs.append(_rung(radius, *found))
    results.append(Result("verdict", judge(facts, rungs)))
    return session.make_report(results, command)


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
        **settings: further arguments of `verify`.

    Returns:
        The reports in the order of the subjects, each as soon as it is there (but the last is
        measured first if it chooses the radii).

    Raises:
        InvalidArgumentError: there is none. Further as `verify`.
    """
    if not subjects:
        raise InvalidArgumentError("verify needs at least one checkpoint or task, got none")
    *earlier, last = subjects
    # Measured first, as it chooses the radii, and yielded in its place.
    final = None if rho else verify(last, **settings)
    if final is not None:
        rho = tuple(r.settings["rho"] for r in final.all("first_order_flatness"))
    for subject in earlier:
        yield verify(subject, rho=rho, **settings)
    yield final if final is not None else verify(last, rho=rho, **settings)


def _forecast(session: Session, radii: int) -> Forecast:
    """Return what it will take at so many radii."""
    price = session.product_price
    passes = {name: MEASURES[name].passes(session) for name in _AT_CHECKPOINT}
    passes["bottom_eigenvalues"] = MEASURES["bottom_eigenvalues"].passes(session)
    # At each radius two searches, of R0 and R1, and one product for the model's maximum.
    passes["flatness"] = float(radii * (2 * session.search_budget + price))
    return forecast_of(session.objective, passes)


def _at_checkpoint(session: Session) -> tuple[list[Result], Facts]:
    """Measure what the ladder and the claims need at the checkpoint itself."""
    results = [result for name in _AT_CHECKPOINT for result in run_whole(name, session)]
    bottom = lanczos(
        session.hessian,
        which="smallest",
        tolerance=_LOWEST,
        max_matvecs=session.own(CurvatureSettings).max_matvecs,
        generator=session.generator("bottom"),
    )
    lowest, top = float(bottom.value[0]), float(session.top.value[0])
    slope, round_ball = max(top, abs(lowest)), Geometry("l2")
    noise = gradient_noise(session, round_ball)
    jump = gradient_jump(session, noise)
    smooth = session.objective.examination.derivatives == 2
    narrow = session.objective.narrow is not None
    facts = Facts(
        top=top,
        top_error=float(session.top.error[0]),
        # Only where Lanczos bounds how far beyond an eigenvalue may have been missed.
        ranked=all(found.notes.get("unseen_within") is not None for found in (session.top, bottom)),
        lowest=lowest,
        lowest_error=float(bottom.error[0]),
        norm=float(session.gradient.double().norm()),
        blurred=rounding_radius(
            session, round_ball, slope, session.ball.noise if narrow else noise
        ),
        jump=jump,
        smooth=smooth,
        norm_error=exactness(session, "gradient", "train")[0],
        narrow=narrow_words(session.objective) if narrow else "",
    )
    note = {"is": "below it, rounding may change R1 by more than 1 %"}
    change = {"distance": jump.distance, "explained": jump.explained, "kink": jump.found}
    return [
        *results,
        Result(
            "bottom_eigenvalues",
            [lowest],
            bottom.error.tolist(),
            "residual",
            status=bottom.status if smooth else Status.NOT_SMOOTH,
        ),
        Result("rounding_radius", facts.blurred, settings=note),
        Result("gradient_jump", jump.size, settings=change),
    ], facts


def _radii(session: Session, blurred: float, rho: Sequence[float]) -> tuple[float, ...]:
    if rho:
        return tuple(radius for radius in session.own(BallSettings).rho if radius >= blurred)
    # Weights that are all zero have no length to go by.
    largest = _LARGEST * float(session.objective.theta.double().norm()) or 0.1
    smallest = max(blurred, _SPAN * largest)
    if smallest >= largest:
        return ()
    steps = (smallest * (largest / smallest) ** (k / (_STEPS - 1)) for k in range(_STEPS))
    # Rounded for readers; what this brings below `blurred` goes.
    return tuple(float(f"{step:.3g}") for step in steps if float(f"{step:.3g}") >= blurred)


def _at_radius(session: Session, rho: float) -> tuple[Result, Result, Result]:
    """Return R0, R1 and the R1 of the quadratic model."""
    session.ball.search("loss", rho)
    session.ball.search("gradient_norm", rho)
    session.ball.look_for_kinks()
    session.ball.make_model()  # a search that is over before asks for none
    r0 = zeroth_order_sharpness.at(session, rho)
    r1 = first_order_flatness.at(session, rho)
    if session.objective.narrow is not None:
        model = session.ball.model_maximum("loss", rho)
        off = session.ball.model_rounding("loss", model)
        known = {"quadratic_model": model.value, "quadratic_model_rounding": off}
        r0 = replace(r0, settings={**r0.settings, **known})
    return r0, r1, quadratic_model_maximum.at(session, rho)


def _rung(rho: float, r0: Result, r1: Result, model: Result) -> Rung:
    return Rung(
        rho,
        # A claim would judge noise: more than 1 % of it is rounding.
        None if r0.status == Status.ROUNDING else r0.value / rho**2,
        r1.value / rho**2,
        r0.settings["quadratic_model"] / rho**2,
        model.value / rho**2,
        r0.settings.get("quadratic_model_rounding", 0.0) / rho**2,
        model.settings["rounding"] / rho**2,
    )
