"""Mean over batches of m samples of the largest increase of the loss of each (m-sharpness)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatkit.checks import check_count
from flatkit.measures.base import Measure
from flatkit.measures.reading import Reading, in_ball
from flatkit.measures.shared_settings import BallSettings
from flatkit.objective.settings import ObjectiveSettings
from flatkit.results.result import Result
from flatkit.settings import setting

if TYPE_CHECKING:
    from flatkit.measures.session import Session


@dataclass(frozen=True, kw_only=True)
class MSharpnessSettings:
    """The size of a batch."""

    m_sharpness: int | None = setting(
        None,
        "The number of samples a batch, e.g. 32; m-sharpness is measured if this is given.",
        check=check_count,
        group="Flatness",
        metavar="M",
    )


def run(session: "Session") -> list[Result]:
    """Return m-sharpness for every radius."""
    return [_at(session, rho) for rho in session.radii("m_sharpness")]


def _at(session: "Session", rho: float) -> Result:
    """Return m-sharpness for one radius, with the standard error over the batches."""
    from flatkit.flatness.m_sharpness import m_sharpness

    geometry, m = session.geometry, session.own(MSharpnessSettings).m_sharpness
    assert m is not None  # `asked_by` sees to it
    with session.meter() as cost:
        found = m_sharpness(
            session.objective,
            rho=rho,
            m=m,
            geometry=geometry,
            # The same batches for each radius, so that how the values grow with ρ is no noise.
            generator=session.generator("batches"),
        )
        return Result(
            "m_sharpness",
            found.value,
            found.error,
            error_kind="standard_error",
            settings={
                "rho": rho,
                "m": m,
                "geometry": geometry.name,
                "batches": found.batches,
                "one_step": found.one_step,
                "is": "mean over batches of lower bounds; the error is over the batches",
                "seed": session.own(ObjectiveSettings).seed,
                # The batches are samples of the population themselves.
                "sampling_error": found.error,
                "sampling_error_is": "standard error over samples of the population, of "
                f"{found.batches} batches; what their searches miss is not known",
                "influence": {
                    "blocks": found.batches,
                    "of": "largest increase of a batch",
                    "values": list(found.values),
                },
            },
            cost=cost(),
        )


def read(result: Result) -> list[Reading]:
    """Return m-sharpness under the size of its batches."""
    size = result.settings["m"]
    found = in_ball(
        result,
        f"R0 of {size} samples",
        f"[m={size}]",
        role="flatness",
        better="lower",
        error_is_of_samples=True,
    )
    return [found]


MEASURE = Measure(
    "m_sharpness",
    "mean over batches of m samples of the largest loss increase of each",
    run,
    read,
    settings=(BallSettings, MSharpnessSettings),
    on_request=True,
    asked_by="m_sharpness",
    in_bfloat16=True,
    about="R0 of batches of m samples, each with a worst point of its own, on average: closer "
    "than R0 to what SAM does in training, which perturbs batch by batch. Lower is flatter; "
    "a lower bound.",
)
