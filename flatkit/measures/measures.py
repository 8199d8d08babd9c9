"""Who measures what: each runner takes a session and returns its results."""

from collections.abc import Callable, Mapping

from flatkit.measures.curvature import (
    bottom_eigenvalues,
    cross_check,
    density,
    frobenius,
    layers,
    top_eigenvalues,
    trace,
)
from flatkit.measures.evaluation import evaluations, gradient_norm
from flatkit.measures.flatness import flatness
from flatkit.measures.landscape import plane_of_loss, slice_of_loss
from flatkit.measures.session import Session
from flatkit.results import Result

RUNNERS: Mapping[str, Callable[[Session], list[Result]]] = {
    "loss": evaluations,
    "accuracy": evaluations,
    "gradient_norm": gradient_norm,
    "top_eigenvalues": top_eigenvalues,
    "bottom_eigenvalues": bottom_eigenvalues,
    "trace": trace,
    "frobenius_norm": frobenius,
    "spectral_density": density,
    "layer_curvature": layers,
    "cross_check": cross_check,
    "zeroth_order_sharpness": flatness,
    "first_order_flatness": flatness,
    "max_gradient_norm": flatness,
    "quadratic_model_maximum": flatness,
    "average_sharpness": flatness,
    "m_sharpness": flatness,
    "loss_slice": slice_of_loss,
    "loss_plane": plane_of_loss,
}
"""Who measures what; one runner may serve several measures at once."""
