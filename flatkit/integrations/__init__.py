"""flatkit inside the training loops of other libraries: SAM, GAM, and curvature as it is logged.

    from flatkit.integrations import PerturbedModuleMixin  # of Lightning
    from flatkit.integrations import PerturbedTrainerMixin  # of Hugging Face transformers

The mixins import nothing of the library whose class they stand before. Both libraries have
callbacks, and both of flatkit's are named `CurvatureCallback`; from here each is imported under the
name of its library, from its module by its own name:

    from flatkit.integrations import LightningCurvatureCallback
    from flatkit.integrations import HuggingFaceCurvatureCallback
    from flatkit.integrations.lightning import CurvatureCallback
    from flatkit.integrations.hugging_face import CurvatureCallback

A library is imported only when its callback is; without it, that is a `MissingDependencyError`.
For other loops there is `flatkit.CurvatureTracker`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatkit.integrations.hugging_face import PerturbedTrainerMixin as PerturbedTrainerMixin
    from flatkit.integrations.hugging_face_callback import (
        CurvatureCallback as HuggingFaceCurvatureCallback,
    )
    from flatkit.integrations.lightning import PerturbedModuleMixin as PerturbedModuleMixin
    from flatkit.integrations.lightning_callback import (
        CurvatureCallback as LightningCurvatureCallback,
    )
    from flatkit.integrations.pyhessian import pyhessian_eigenvalues as pyhessian_eigenvalues

__all__ = [
    "HuggingFaceCurvatureCallback",
    "LightningCurvatureCallback",
    "PerturbedModuleMixin",
    "PerturbedTrainerMixin",
    "pyhessian_eigenvalues",
]

_HOMES = {
    "HuggingFaceCurvatureCallback": "hugging_face_callback:CurvatureCallback",
    "LightningCurvatureCallback": "lightning_callback:CurvatureCallback",
    "PerturbedModuleMixin": "lightning:PerturbedModuleMixin",
    "PerturbedTrainerMixin": "hugging_face:PerturbedTrainerMixin",
    "pyhessian_eigenvalues": "pyhessian:pyhessian_eigenvalues",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
