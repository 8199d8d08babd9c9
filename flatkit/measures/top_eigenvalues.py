"""Largest eigenvalues of the Hessian, each with its residual."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatkit.measures.base import Draft, Measure
from flatkit.measures.reading import Reading, numbered
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.results.result import Result
from flatkit.results.status import Status
from flatkit.settings import setting

if TYPE_CHECKING:
    from flatkit.measures.session import Session


@dataclass(frozen=True, kw_only=True)
class EigenvectorSettings:
    """Where eigenvectors are kept."""

    eigenvectors: str | None = setting(
        None,
        "Folder for the eigenvectors of the largest eigenvalues, as NAME.npy of shape [k, P]; the "
        "report names the file.",
        group="Curvature",
        metavar="DIR",
    )


def run(session: "Session") -> "Iterator[Draft]":
    """Find the largest eigenvalues, and how the first spreads over draws of the samples."""
    spread: dict[str, Any] = {}
    with session.meter() as cost:

        def results() -> list[Result]:
            found = session.top_so_far
            settings = {**asked(session.own(CurvatureSettings)), **spread}
            spent = cost() + session.krylov_by_others
            return [session.estimated("top_eigenvalues", found, settings, spent)]

        while session.searches_by_krylov and not session.krylov.done:
            session.krylov.step()
            session.look_at(session.krylov)
            yield Draft(results, session.krylov.excess)
        folder = session.own(EigenvectorSettings).eigenvectors
        if folder is not None:
            spread["eigenvectors"] = _save_vectors(session, folder)
        spread |= session.over_draws(session.top, session.eigenvalues)
        yield Draft(results, 1.0)


def _save_vectors(session: "Session", folder: str) -> str:
    """Write the eigenvectors, and return the name of the file, the same for the same weights."""
    from hashlib import sha256
    from io import BytesIO

    import numpy as np

    from flatkit.files.atomic import make_folder, write_atomically

    vectors = session.top.vectors
    assert vectors is not None  # every method for eigenvalues returns them
    # By the weights: vectors of two checkpoints in one folder never overwrite each other.
    weights = session.curved.theta.detach().cpu().double().numpy().tobytes()
    name = f"{sha256(weights).hexdigest()[:16]}.npy"
    content = BytesIO()
    np.save(content, vectors.detach().cpu().numpy())
    if session.curved.ranks.is_first:
        make_folder(folder)
        write_atomically(Path(folder) / name, lambda stream: stream.write(content.getvalue()))
    return name


def _products_to_first(session: "Session") -> int:
    wanted = session.own(CurvatureSettings).num_eigenvalues
    # A Krylov space has as many Ritz values as products; other methods have none before their end.
    return max(0, wanted - session.krylov.matvecs) if session.searches_by_krylov else 20 * wanted


def asked(own: CurvatureSettings) -> dict[str, Any]:
    """Return what was asked of the eigenvalues, ready for JSON."""
    return {
        "method": "lanczos" if own.method == "auto" else own.method,
        "tolerance": own.tolerance,
        "max_matvecs": own.max_matvecs,
        "k": own.num_eigenvalues,
    }


def read(result: Result) -> list[Reading]:
    """Return every eigenvalue; the first is λmax and is compared."""
    found = [_as_bound(result, one) for one in numbered(result, "eigenvalue λ")]
    return [_largest(one) if one.key == "top_eigenvalues[1]" else one for one in found]


def _as_bound(result: Result, reading: Reading) -> Reading:
    """Return a value that far larger ones may exceed as what it is: a Ritz value, a lower bound.

    So it is after a few products, when little is ruled out.
    """
    far = reading.error is not None and reading.error > abs(reading.value)
    residuals = result.settings.get("residual")
    if not far or result.status not in (Status.BUDGET, Status.INTERRUPTED) or not residuals:
        return reading
    place = int(reading.key.rpartition("[")[2].rstrip("]")) - 1
    near = f"an eigenvalue within {residuals[place]:.1g} of it; larger ones are not ruled out"
    return replace(reading, error=None, error_kind="lower_bound", remark=near)


def _largest(reading: Reading) -> Reading:
    return replace(
        reading,
        key="top_eigenvalues",
        title="top eigenvalue λmax",
        role="flatness",
        better="lower",
        drawn=True,
    )


MEASURE = Measure(
    "top_eigenvalues",
    "largest eigenvalues of the Hessian",
    run,
    read,
    derivatives=2,
    settings=(CurvatureSettings, EigenvectorSettings),
    passes=lambda session: 20.0 * session.product_price,
    first=lambda session: float(_products_to_first(session) * session.product_price),
    in_bfloat16=True,
    influence=lambda samples, result: samples.top_eigenvalues(result),
    about="λmax, the curvature of the loss along its steepest direction: a step ε along it raises "
    "the loss by about λmax·ε²/2 at a minimum. Lower is flatter. An eigenvalue lies within "
    "the residual of each value. Rescaling weights that ReLU or BatchNorm leave free "
    "changes it without changing the network.",
)
