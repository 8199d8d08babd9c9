"""Top eigenvalues by flatkit beside those of PyHessian, and why they differ."""

from typing import TYPE_CHECKING

from flatkit.measures.base import Measure
from flatkit.measures.reading import Reading, detail
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.results.result import Result
from flatkit.results.status import Status

if TYPE_CHECKING:
    from flatkit.measures.session import Session


def run(session: "Session") -> list[Result]:
    """Return both, with a residual each, and a sentence for each eigenvalue that differs."""
    from flatkit.integrations.pyhessian import explain_disagreement

    with session.meter() as cost:
        hessian = session.curvature
        # Where PyHessian was asked for as the method, ours is the one that is still missing.
        second = session.own(CurvatureSettings).method == "pyhessian"
        ours = session.eigenvalues(hessian, method="lanczos") if second else session.top
        theirs = session.eigenvalues(hessian, method="pyhessian")
        lines = explain_disagreement(ours, theirs)
        agree = lines[0].startswith("both agree")
        return [
            Result(
                "cross_check",
                {"flatkit": ours.value.tolist(), "pyhessian": theirs.value.tolist()},
                {"flatkit": ours.error.tolist(), "pyhessian": theirs.error.tolist()},
                error_kind="residual",
                status=Status.CONVERGED if agree else Status.DISAGREEMENT,
                settings={
                    "explanation": lines,
                    "flatkit_seconds": ours.seconds,
                    "pyhessian_seconds": theirs.seconds,
                    **session.measured_on,
                },
                cost=cost(),
            )
        ]


def read(result: Result) -> list[Reading]:
    """Return the eigenvalues of both, side by side."""
    return [
        detail(
            result, f"cross_check_{who}[{place}]", f"λ{place} by {name}", value, error, "residual"
        )
        for who, name in (("flatkit", "flatkit"), ("pyhessian", "PyHessian"))
        for place, (value, error) in enumerate(
            zip(result.value[who], result.error[who], strict=True), start=1
        )
    ]


def remarks(result: Result) -> list[str]:
    """Return why the two differ."""
    return [f"flatkit and PyHessian: {line}" for line in result.settings.get("explanation", ())]


MEASURE = Measure(
    "cross_check",
    "top eigenvalues by flatkit and by PyHessian, compared",
    run,
    read,
    derivatives=2,
    settings=(CurvatureSettings,),
    on_request=True,
    flag="--cross-check",
    remarks=remarks,
    about="The same eigenvalues by PyHessian, with residuals computed here. Two programs that "
    "share no code agree, or the report says by how much they do not.",
)
