"""The contract of an optimizer that takes gradients at perturbed points and lets another step."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch.optim import Optimizer

from flatkit.checks import check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.optim.excursion import Closure, Excursion
from flatkit.optim.vectors import Vector

_MARK = "_flatkit_wrapped_by"
"""Attribute of a base in use: a second wrapper would silently take over the first one's options."""


class _Shared:
    """An attribute of the base optimizer, read and written there."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: "PerturbedOptimizer | None", owner: type) -> Any:
        return self if instance is None else getattr(instance.base, self._name)

    def __set__(self, instance: "PerturbedOptimizer", value: object) -> None:
        setattr(instance.base, self._name, value)


def _shared() -> Any:
    return _Shared()


class PerturbedOptimizer(Optimizer, ABC):
    """Wraps an optimizer: a subclass combines gradients at perturbed points, the base steps.

    It IS an optimizer: `param_groups`, `state` and `defaults` are those of `base`, the same
    objects always, so schedulers, hooks, `zero_grad`, `state_dict`, pickle and deepcopy work as
    for any other. Weight decay, momentum and the like are the business of the base.

    Options such as `rho` live in the param groups, where a schedule may change them and each group
    may have its own: `SGD([{"params": a, "rho": 0.1}, {"params": b}], lr=0.1)`. Where the base has
    an option of that name already (`rho` of Adadelta, `alpha` of RMSprop), ours is called
    `sam_rho`, `gam_alpha`. A norm is always taken over ALL parameters together, so there is one
    direction; the radius of a group scales the part of the step that its parameters take.

    Each step moves the parameters and puts them back bit for bit, also if the closure raises; the
    base has then not stepped, and all gradients are `None`. Dropout is drawn anew in each pass.

    Not supported: loss scaling by `GradScaler`, which refuses closures (autocast to bfloat16
    inside the closure needs none); sparse gradients; bases that call the closure themselves.

    Args:
        base: an optimizer that was built over the parameters; not to be stepped by itself.
        options: own options and their defaults.
        eps: added to each norm that is divided by.

    Attributes:
        base: the wrapped optimizer.
        eps: as above.

    Raises:
        InvalidArgumentError: an argument is not allowed.

    >>> from flatkit.optim import SAM
    >>> theta = torch.nn.Parameter(torch.tensor([3.0]))
    >>> optimizer = SAM(torch.optim.SGD([theta], lr=0.1), rho=0.5)
    >>> optimizer.param_groups is optimizer.base.param_groups, optimizer.param_groups[0]["rho"]
    (True, 0.5)
    """

    base: Optimizer
    eps: float
    defaults: dict[str, Any] = _shared()
    state: Any = _shared()
    param_groups: list[dict[str, Any]] = _shared()

    def __init__(self, base: Optimizer, *, options: Mapping[str, float], eps: float) -> None:
        _check_base(base)
        prefix = type(self).__name__.lower()
        keys = {name: f"{prefix}_{name}" if name in base.defaults else name for name in options}
        # Not Optimizer.__init__, which would make groups and a state of its own.
        self.__setstate__({"base": base, "eps": check_positive("eps", eps), "_keys": keys})
        for name, value in options.items():
            self._check_number(name, value)
        for group in base.param_groups:
            self._check_options(group)
        own = {keys[name]: float(value) for name, value in options.items()}
        base.defaults.update(own)
        for group in base.param_groups:
            _fill(group, own)
        setattr(base, _MARK, type(self).__name__)

    @property
    @abstractmethod
    def passes(self) -> int:
        """How often a step calls the closure."""

    @property
    def gradient_pass(self) -> int:
        """The number of the pass that calls the closure: 0 in the first, 0 outside of a step.

        >>> from flatkit.optim import SAM
        >>> theta = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = SAM(torch.optim.SGD([theta], lr=0.1))
        >>> def closure():
        ...     print("pass", optimizer.gradient_pass)
        ...     return theta.square().sum()
        >>> optimizer.step(closure)
        pass 0
        pass 1
        tensor(9.)
        """
        return 0 if self._excursion is None else max(self._excursion.pass_number, 0)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Make one step and return the loss at the parameters before it, detached.

        Args:
            closure: returns the loss. It may call `backward()` once or more, as closures of torch
                do, or leave that to the optimizer; it need not zero the gradients. Called several
                times, with gradients enabled. It must compute the same loss each time.

        Afterwards `.grad` holds the combined gradient that the base has used; it stays `None` for
        a parameter that had no gradient in any pass. On a GPU each norm waits for the device.

        Raises:
            InvalidArgumentError: there is no closure, it does not give a loss, or an option in a
                param group is not allowed.
            NonFiniteError: a gradient is NaN or infinite.
        """
        if closure is None:
            raise InvalidArgumentError(
                f"{type(self).__name__}.step needs a closure that returns the loss, because it "
                f"takes {self.passes} gradients a step: step(lambda: loss(model(x), y))"
            )
        for group in self.param_groups:
            self._check_options(group)
        self.zero_grad()
        walk = self._excursion = Excursion(self.param_groups, closure, eps=self.eps)
        try:
            with walk:
                gradient = self._combined_gradient(walk)
                walk.norm(gradient, "combined gradient")
        finally:
            self._excursion = None
        walk.write_gradient(gradient)
        self.base.step()
        return walk.loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; options that it does not name get their defaults.

        Raises:
            InvalidArgumentError: an option is not allowed; nothing was added.
        """
        self._check_options(param_group)
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the base, with the own options in its `param_groups`."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state = self.base.state_dict()
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            changed = post_hook(self, state)
            state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer, or of a plain base: own options then stay as they are.

        Raises:
            InvalidArgumentError: a loaded option is not allowed; nothing was changed.
        """
        state = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state)
            state = state if changed is None else changed
        for group in state["param_groups"]:
            self._check_options(group)
        kept = [{key: group[key] for key in self._keys.values()} for group in self.param_groups]
        self.base.load_state_dict(state)
        for group, options in zip(self.param_groups, kept, strict=True):
            _fill(group, options)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        # Like any optimizer: no hooks, and not the `step` that a scheduler has wrapped.
        return {"base": self.base, "eps": self.eps, "_keys": self._keys}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._excursion: Excursion | None = None
        self._keys: dict[str, str] = state["_keys"]
        super().__setstate__(state)

    def __repr__(self) -> str:
        return f"{type(self).__name__} over {self.base!r}"

    @abstractmethod
    def _combined_gradient(self, walk: Excursion) -> Vector:
        """Return the gradient that the base is to use, from `self.passes` passes."""

    @abstractmethod
    def _check_option(self, name: str, value: float) -> None:
        """Raise `InvalidArgumentError` if an own option has a value that is not allowed."""

    def _option(self, name: str, walk: Excursion) -> list[float]:
        """Return the value of an own option for each block of a vector."""
        return [group[self._keys[name]] for group in walk.groups]

    def _check_options(self, group: Mapping[str, Any]) -> None:
        for name, key in self._keys.items():
            if key in group:
                self._check_number(name, group[key])

    def _check_number(self, name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InvalidArgumentError(f"{name} must be a number, got {value!r}")
        self._check_option(name, float(value))


def _check_base(base: object) -> None:
    if isinstance(base, type):
        raise InvalidArgumentError(
            f"base must be an optimizer, got the class {base.__name__}; "
            f"build it first: {base.__name__}(model.parameters(), lr=...)"
        )
    if not isinstance(base, Optimizer):
        raise InvalidArgumentError(f"base must be a torch.optim.Optimizer, got {base!r}")
    if isinstance(base, PerturbedOptimizer):
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
    if any(p.is_complex() for group in base.param_groups for p in group["params"]):
        raise InvalidArgumentError("parameters must be real, got complex ones")


def _fill(group: dict[str, Any], options: Mapping[str, float]) -> None:
    for key, value in options.items():
        group.setdefault(key, value)
