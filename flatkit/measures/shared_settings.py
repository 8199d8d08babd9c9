"""Settings that several measures share; what one measure alone needs stands in its file."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from flatkit.checks import check_count, check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.settings import setting

Method: TypeAlias = Literal["auto", "lanczos", "power", "lobpcg", "pyhessian"]
GeometryName: TypeAlias = Literal["l2", "adaptive", "filter", "linf"]

SEARCH_BUDGET, FULL_SEARCH_BUDGET = 150, 600
"""Gradients for a search in a ball: usual, and with `full`."""


@dataclass(frozen=True, kw_only=True)
class CurvatureSettings:
    """How eigenvalues are found, and of which part of the Hessian."""

    method: Method = setting(
        "auto",
        "How to find eigenvalues: auto (Lanczos), lanczos, power, lobpcg (clusters) or pyhessian "
        "(a second opinion).",
        group="Curvature",
    )
    num_eigenvalues: int = setting(
        1,
        "How many of the largest eigenvalues.",
        check=check_count,
        group="Curvature",
        flags=("--eigenvalues",),
    )
    tolerance: float = setting(
        1e-4,
        "Residual of the eigenvalues, relative to the largest magnitude.",
        check=check_positive,
        group="Curvature",
    )
    max_matvecs: int = setting(
        1000,
        "Budget of Hessian-vector products for the eigenvalues, and as many for the trace.",
        check=partial(check_count, minimum=16),
        group="Curvature",
    )
    params: Sequence[str] = setting(
        (),
        "Curvature of the parameters of such names alone, e.g. 'layer3.*': of their diagonal block "
        "of the Hessian.",
        group="Curvature",
        metavar="PATTERN[,PATTERN]",
        default_text="all",
    )
    draws: int = setting(
        1,
        "Repeat eigenvalues and trace on so many draws of the samples and report their spread.",
        check=check_count,
        group="Curvature",
    )


@dataclass(frozen=True, kw_only=True)
class BallSettings:
    """The balls in parameter space in which flatness is measured."""

    rho: Sequence[float] = setting(
        (0.01, 0.03, 0.1),
        "Radii of the balls, in the units of the parameters.",
        check=partial(check_positive, hint="the radius of a ball in parameter space"),
        group="Flatness",
    )
    geometry: GeometryName = setting(
        "l2",
        "Shape of the balls; adaptive is relative to each weight, filter to each filter.",
        group="Flatness",
    )
    search_budget: int | None = setting(
        None,
        "Gradients for each search in a ball, about; a Hessian-vector product counts as 2 or 3.",
        check=check_count,
        group="Flatness",
        default_text=f"{SEARCH_BUDGET}, fewer where a round gains nothing; with --full "
        f"{FULL_SEARCH_BUDGET}",
    )

    def __post_init__(self) -> None:
        """Refuse no radius, and sort the radii: each search starts from that of the one before."""
        if not self.rho:
            raise InvalidArgumentError("rho must hold at least one radius, got none")
        object.__setattr__(self, "rho", tuple(sorted(set(self.rho))))
