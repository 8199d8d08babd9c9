"""What may be wrapped, and how attributes are shared with it."""

import inspect
from typing import Any, final

from torch.optim import Optimizer

from flatkit.errors import InvalidArgumentError

_MARK = "_flatkit_wrapped_by"
"""Attribute of a base in use: a second wrapper would silently take over the first one's options."""


@final
class Shared:
    """An attribute of the base optimizer, read and written there."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else getattr(instance.base, self._name)

    def __set__(self, instance: Any, value: object) -> None:
        setattr(instance.base, self._name, value)


def mark(base: Optimizer, name: str) -> None:
    """Note that the base is in use by a wrapper of this name."""
    setattr(base, _MARK, name)


def check_base(base: object, wrapper: type) -> None:
    """Check that `base` is an optimizer that steps from given gradients and is not in use.

    Args:
        base: anything.
        wrapper: the class of optimizers that may not be wrapped again.

    Raises:
        InvalidArgumentError: it is not.

    >>> from torch.optim import SGD
    >>> check_base(SGD, int)
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: base must be an optimizer, got the class SGD; build it ...
    """
    if isinstance(base, type):
        raise InvalidArgumentError(
            f"base must be an optimizer, got the class {base.__name__}; "
            f"build it first: {base.__name__}(model.parameters(), lr=...)"
        )
    if not isinstance(base, Optimizer):
        raise InvalidArgumentError(f"base must be a torch.optim.Optimizer, got {base!r}")
    if isinstance(base, wrapper):
        raise InvalidArgumentError(
            f"base must be a plain optimizer, got {type(base).__name__}; wrap {type(base).__name__}"
            ".base, or a new optimizer"
        )
    _check_free(base)


def _check_free(base: Optimizer) -> None:
    name = type(base).__name__
    wrapper = getattr(base, _MARK, None)
    if wrapper is not None:
        raise InvalidArgumentError(
            f"base is already wrapped by {wrapper}, whose options its groups hold; "
            f"build a new {name}"
        )
    closure = inspect.signature(base.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InvalidArgumentError(
            f"base must step from given gradients, but {name} calls the closure itself"
        )
    parameters = [p for group in base.param_groups for p in group["params"]]
    if any(p.is_complex() for p in parameters):
        raise InvalidArgumentError("parameters must be real, got complex ones")
    if any(hasattr(p, "full_tensor") for p in parameters):  # a DTensor
        raise InvalidArgumentError(
            "parameters must be whole, got sharded ones (DTensor), whose norms are not known to "
            "one process; use DistributedDataParallel"
        )
