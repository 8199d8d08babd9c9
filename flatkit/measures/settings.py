"""What to measure and how; no torch, so that the command line can check its options at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from flatkit.checks import check_choice, check_count, check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.objective.settings import ObjectiveSettings
from flatkit.settings import check_settings, setting

Method: TypeAlias = Literal["auto", "lanczos", "power", "lobpcg", "pyhessian"]
TraceMethod: TypeAlias = Literal["auto", "hutchinson", "hutch++", "xtrace"]
GeometryName: TypeAlias = Literal["l2", "adaptive", "filter", "linf"]

MEASURES = {
    "loss": "mean loss on the training and test data",
    "accuracy": "fraction of samples classified correctly, on both",
    "gradient_norm": "norm of the loss gradient on the training data",
    "top_eigenvalues": "largest eigenvalues of the Hessian",
    "bottom_eigenvalues": "most negative eigenvalues of the Hessian",
    "trace": "trace of the Hessian",
    "frobenius_norm": "root of the sum of the squared eigenvalues",
    "spectral_density": "density of the eigenvalues, smoothed",
    "layer_curvature": "top eigenvalue and trace of the Hessian block of each layer",
    "cross_check": "top eigenvalues by flatkit and by PyHessian, compared",
    "zeroth_order_sharpness": "R0: largest increase of the loss within rho",
    "first_order_flatness": "R1: rho times the largest gradient norm within rho",
    "max_gradient_norm": "the largest gradient norm within rho itself",
    "quadratic_model_maximum": "R1 of the quadratic model, a second estimate beside the search",
    "average_sharpness": "mean increase of the loss under Gaussian noise of length rho",
    "m_sharpness": "mean over batches of m samples of the largest loss increase of each",
    "loss_slice": "loss, accuracy and gradient norm along random directions",
    "loss_plane": "loss and accuracy on a random plane",
}
"""The measures by name, in the order in which they run."""

_ON_REQUEST = (
    "bottom_eigenvalues",
    "frobenius_norm",
    "spectral_density",
    "layer_curvature",
    "cross_check",
    "max_gradient_norm",
    "m_sharpness",
)


def _check_radius(name: str, value: float) -> float:
    return check_positive(name, value, hint="the radius of a ball in parameter space")


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings(ObjectiveSettings):
    """Settings of `analyze`, beside those of `ObjectiveSettings`.

    Attributes:
        measures: names from `MEASURES`.
        rho: radii of the balls, in the units of the parameters.
        method: for the eigenvalues: `auto` (Lanczos), `lanczos`, `power`, `lobpcg` (clusters) or
            `pyhessian` (a second opinion, without an error).
        trace_method: `auto`, `hutchinson`, `hutch++` or `xtrace`.
        params: shell patterns of parameter names; the curvature measures are then of the diagonal
            block of the Hessian that belongs to them. All parameters by default.
        draws: with `samples`, repeat eigenvalues and trace on so many draws of samples and
            report their spread; 1 is no repetition.
        geometry: of the balls: `l2`, `adaptive` (relative to each weight), `filter` (relative
            to each filter) or `linf`.
        budget: gradients for each search in a ball, about; a Hessian-vector product counts as 2.
        m_sharpness: samples a batch of m-sharpness, which is measured if this is given.
        num_eigenvalues: how many.
        tolerance: on their residual, relative to the largest magnitude.
        trace_tolerance: on the standard error of the trace, relative to it.
        max_matvecs: Hessian-vector products for the eigenvalues, and as many for the trace.
        slice_points: steps of a slice, odd.
        slice_directions: random directions of the slice.
        plane_points: steps of the plane along each axis, odd.
        extent: slices and planes reach from -extent to extent; 1 is the length of the weights.

    Raises:
        InvalidArgumentError: one of them is out of range.

    >>> AnalysisSettings(rho=(0.1, 0.01)).rho
    (0.01, 0.1)
    """

    measures: Sequence[str] = tuple(name for name in MEASURES if name not in _ON_REQUEST)
    rho: Sequence[float] = setting(
        (0.01, 0.03, 0.1), "Radii of the balls.", check=_check_radius, group="Flatness"
    )
    method: Method = "auto"
    trace_method: TraceMethod = "auto"
    params: Sequence[str] = ()
    draws: int = 1
    geometry: GeometryName = "l2"
    budget: int = setting(
        600, "Gradients for each search in a ball.", check=check_count, group="Flatness"
    )
    m_sharpness: int | None = None
    num_eigenvalues: int = 1
    tolerance: float = 1e-4
    trace_tolerance: float = 0.02
    max_matvecs: int = 1000
    slice_points: int = 31
    slice_directions: int = 5
    plane_points: int = 21
    extent: float = 1.0

    def __post_init__(self) -> None:
        """Check everything, and sort the measures and radii."""
        check_settings(self)
        for measure in self.measures:
            check_choice("measures", measure, MEASURES)
        if not self.measures:
            raise InvalidArgumentError("measures must name at least one measure, got none")
        self._check_numbers()
        check_choice("method", self.method, get_args(Method))
        check_choice("trace_method", self.trace_method, get_args(TraceMethod))
        if self.draws > 1 and self.samples is None:
            raise InvalidArgumentError("draws > 1 needs samples, the size of a draw")
        check_choice("geometry", self.geometry, get_args(GeometryName))
        if "m_sharpness" in self.measures and self.m_sharpness is None:
            raise InvalidArgumentError("m_sharpness needs the number of samples a batch, e.g. 32")
        in_order = tuple(
            name
            for name in MEASURES
            if name in self.measures or (name == "m_sharpness" and self.m_sharpness is not None)
        )
        object.__setattr__(self, "measures", in_order)
        object.__setattr__(self, "rho", tuple(sorted(set(self.rho))))

    def _check_numbers(self) -> None:
        if not self.rho:
            raise InvalidArgumentError("rho must hold at least one radius, got none")
        for name in ("tolerance", "trace_tolerance", "extent"):
            check_positive(name, getattr(self, name))
        if self.m_sharpness is not None:
            check_count("m_sharpness", self.m_sharpness)
        check_count("max_matvecs", self.max_matvecs, minimum=16)
        check_count("num_eigenvalues", self.num_eigenvalues)
        check_count("draws", self.draws)
        check_count("slice_directions", self.slice_directions, minimum=2)
        for name in ("slice_points", "plane_points"):
            if check_count(name, getattr(self, name), minimum=3) % 2 == 0:
                raise InvalidArgumentError(
                    f"{name} must be odd, so that the checkpoint itself is one of the points, "
                    f"got {getattr(self, name)}"
                )
