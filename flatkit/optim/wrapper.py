"""The contract of an optimizer that takes gradients at perturbed points and lets another step."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import closing
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch.optim import Optimizer

from flatkit.errors import InvalidArgumentError
from flatkit.optim.autograd import Passes
from flatkit.optim.base_optimizer import Shared, check_base, mark
from flatkit.optim.blockwise import Blocks
from flatkit.optim.passes import Step
from flatkit.optim.perturb import PerturbedPoint
from flatkit.optim.settings import Keywords, Settings

if TYPE_CHECKING:
    from torch.amp import GradScaler
    from typing_extensions import Unpack

Closure: TypeAlias = Callable[[], Any]
"""Returns the loss as a tensor of one element, or as anything if it has called `backward()`."""


class PerturbedOptimizer(Optimizer, ABC):
    """Wraps an optimizer: a subclass combines gradients at perturbed points, the base steps.

    It IS an optimizer: `param_groups`, `state` and `defaults` are those of `base`, the same
    objects always, so schedulers, hooks, `zero_grad`, `state_dict`, pickle and deepcopy work as
    for any other. Weight decay, momentum and the like are left to the base.

    Options such as `rho` live in the param groups, where a schedule may change them and each group
    may have its own: `SGD([{"params": a, "rho": 0.1}, {"params": b}], lr=0.1)`. Where the base has
    an option of that name already (`rho` of Adadelta, `alpha` of RMSprop), ours is called
    `sam_rho`, `gam_alpha`. A norm is always taken over ALL parameters together, so there is one
    direction; the radius of a group scales the part of the step that its parameters take.

    Each step moves the parameters and puts them back bit for bit, also if the loss raises; the
    base has then not stepped, and all gradients are `None`. Dropout is drawn anew in each pass.

    The losses come from a closure, `step(closure)`, or from a loop over `gradient_passes()`. Either
    takes a `GradScaler`, and as many backward passes a point as the batch has parts. Gradients that
    are sparse in every pass are sparse for the base, but dense in between.

    Args:
        base: an optimizer that was built over the parameters; not to be stepped by itself. It must
            step from given gradients (LBFGS does not).
        options: own options and their defaults.
        model: as the training loop calls it. Its buffers, such as the running statistics of
            BatchNorm, then change in the first pass of a step only. None leaves them alone.
        batch: under DistributedDataParallel, whose gradient perturbs: `global`, that of the whole
            batch, averaged in each pass; `local`, each process its own, and only the combined
            gradient is averaged, once (needs `model`). The weights of all processes stay equal.
            Sharded parameters (FSDP) are not supported.
        adaptive: measure steps by ‖T⁻¹δ‖ with T = |θ| + η, entry by entry, so that a radius does
            not depend on the scale of the weights (Kwon et al., 2021): a step along d is
            ρ·T²d/‖Td‖. Takes two more vectors for a moment.
        eta: η > 0.
        every: only each k-th step, from the first on, is a perturbed one; the others are the
            base's own with one gradient. Cost: (passes + k − 1)/k gradients a step, which is
            `mean_passes`.
        max_norm: the combined gradient is shortened to this norm if it is longer: after loss
            scaling is undone and the mean over processes taken, right before the base.
            Perturbations are not clipped, because they have the length of their radius.
        foreach: one call for many tensors; False for tensor by tensor.
        eps: ξ > 0, added to each norm that is divided by.

    Attributes:
        base: the wrapped optimizer.

    Raises:
        InvalidArgumentError: an argument is not allowed.

    >>> from flatkit.optim import SAM
    >>> theta = torch.nn.Parameter(torch.tensor([3.0]))
    >>> optimizer = SAM(torch.optim.SGD([theta], lr=0.1), rho=0.5)
    >>> optimizer.param_groups is optimizer.base.param_groups, optimizer.param_groups[0]["rho"]
    (True, 0.5)
    """

    base: Optimizer
    if not TYPE_CHECKING:  # for a type checker they are what Optimizer declares
        defaults, state, param_groups = Shared(), Shared(), Shared()

    _radii: ClassVar[tuple[str, ...]] = ("rho",)
    """Which of the own options are radii."""

    def __init__(
        self,
        base: Optimizer,
        *,
        options: Mapping[str, float],
        **settings: "Unpack[Keywords]",
    ) -> None:
        check_base(base, PerturbedOptimizer)
        prefix = type(self).__name__.lower()
        keys = {name: f"{prefix}_{name}" if name in base.defaults else name for name in options}
        # Not Optimizer.__init__, which would make groups and a state of its own.
        state = {"base": base, "_settings": Settings(**settings), "_keys": keys, "_steps": 0}
        self.__setstate__(state)
        for name, value in options.items():
            self._check_number(name, value)
        for group in base.param_groups:
            self._check_options(group)
        own = {keys[name]: float(value) for name, value in options.items()}
        base.defaults.update(own)
        for group in base.param_groups:
            _fill(group, own)
        mark(base, type(self).__name__)

    @property
    @abstractmethod
    def passes(self) -> int:
        """How many gradients at how many points a perturbed step takes."""

    @property
    def mean_passes(self) -> float:
        """Passes a step in the mean over perturbed and plain ones.

        >>> from flatkit.optim.gam import GAM
        >>> theta = torch.nn.Parameter(torch.tensor([3.0]))
        >>> GAM(torch.optim.SGD([theta], lr=0.1), every=3).mean_passes  # (4 + 1 + 1)/3
        2.0
        """
        every = self._settings.every
        return (self.passes + every - 1) / every

    @property
    def gradient_pass(self) -> int:
        """The number of the pass under way: 0 in the first, 0 outside of a step.

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
        return 0 if self._under_way is None else self._under_way.pass_number

    @property
    def radius_keys(self) -> list[str]:
        """The keys of the radii in the param groups.

        >>> from flatkit.optim.gam import GAM
        >>> theta = torch.nn.Parameter(torch.tensor([3.0]))
        >>> GAM(torch.optim.Adadelta([theta])).radius_keys  # Adadelta has a rho of its own
        ['gam_rho', 'rho_prime']
        """
        return [key for name, key in self._keys.items() if name in self._radii]

    def gradient_passes(self, scaler: "GradScaler | None" = None) -> Passes[None]:
        """Yield the passes of one step, for loops without a closure.

        In each pass compute the loss at the parameters as they are and call
        `gradient_pass.backward(loss)`, which scales if there is a scaler; or `loss.backward()`,
        with a scaler `scaler.scale(loss).backward()`. Several calls in one pass, for parts of a
        batch, add up: the perturbation is then that of the whole batch. After the last pass the
        parameters are back and `.grad` holds the combined gradient, unscaled, which may be
        clipped. Then comes `optimizer.step()`, or `scaler.step(optimizer)` and `scaler.update()`.

        Where a scaled gradient overflows, the passes end, the parameters are back, the gradients
        are `None`, and `scaler.step(optimizer)` does nothing.

        Leaving the loop early, by `break` or an error, puts the parameters back as soon as the
        generator is closed: at once in `for gradient_pass in optimizer.gradient_passes()`.

        Raises:
            InvalidArgumentError: an option in a param group is not allowed, or a pass ended
                without a gradient.
            NonFiniteError: a gradient is NaN or infinite, and there is no scaler.

        >>> from flatkit.optim import SAM
        >>> theta = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = SAM(torch.optim.SGD([theta], lr=0.1), rho=1.0)
        >>> for gradient_pass in optimizer.gradient_passes():
        ...     loss = theta.square().sum() / 2
        ...     loss.backward()
        >>> theta.grad
        tensor([4.])
        >>> optimizer.step()
        >>> theta.item()
        2.5999...
        """
        return self._begun(scaler, owner=self)

    def phases(self, scaler: "GradScaler | None" = None) -> Passes[None]:
        """Return `gradient_passes(scaler)`, under the name that it had first.

        >>> from flatkit.optim import SAM
        >>> theta = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = SAM(torch.optim.SGD([theta], lr=0.1))
        >>> [(theta * theta).backward() for _ in optimizer.phases()]
        [None, None]
        """
        return self.gradient_passes(scaler)

    def step(self, closure: Closure | None = None, *, scaler: "GradScaler | None" = None) -> Any:
        """Make one step and return the loss at the parameters before it, detached.

        After a loop that called `loss.backward()` itself the loss is not known: None.

        Args:
            closure: returns the loss. It may call `backward()` once or more, as closures of torch
                do (on `scaler.scale(loss)` if there is a scaler), or leave that to the optimizer;
                it need not zero the gradients. Called several times, with gradients enabled. It
                must compute the same loss each time. None after a loop over `gradient_passes()`.
            scaler: of a closure that runs under autocast to float16; `scaler.update()` is left to
                the caller. A step whose gradients overflow is skipped, the parameters are back.

        Afterwards `.grad` holds the combined gradient that the base has used; it stays `None` for
        a parameter that had no gradient in any pass. On a GPU each norm waits for the device.

        Raises:
            InvalidArgumentError: there is no closure and no loop over `gradient_passes()` was
                completed, the closure does not give a loss, or an option in a param group is not
                allowed.
            NonFiniteError: a gradient is NaN or infinite, and there is no scaler.
        """
        if closure is None:
            return self._step_prepared()
        enabled = torch.enable_grad()
        with closing(self._begun(scaler, owner=self.base)) as passes:
            for gradient_pass in passes:
                with enabled:
                    gradient_pass.take(closure())
        if scaler is None or not scaler.is_enabled():
            return self._step_prepared()
        scaler.step(self.base)  # or not, after an overflow
        return self._stepped()

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
        state = self.base.state_dict() | {"perturbation": {"steps": self._steps}}
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
        # A state of the plain base has none: the count of `every` begins anew.
        own = state.pop("perturbation", {"steps": 0})
        kept = [{key: group[key] for key in self._keys.values()} for group in self.param_groups]
        self.base.load_state_dict(state)
        self._steps = own["steps"]
        for group, options in zip(self.param_groups, kept, strict=True):
            _fill(group, options)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        # Like any optimizer: no hooks, and not the `step` that a scheduler has wrapped.
        return {name: getattr(self, name) for name in ("base", "_settings", "_keys", "_steps")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._under_way: Step | None = None
        # Weak: a loop that somebody has left is closed, and θ restored, when its generator dies.
        self._open: weakref.ref[Passes[None]] | None = None
        self._prepared = False
        self._loss: Any = None
        self._settings: Settings = state["_settings"]
        self._keys: dict[str, str] = state["_keys"]
        self._steps: int = state["_steps"]
        super().__setstate__(state)

    def __repr__(self) -> str:
        return f"{type(self).__name__} over {self.base!r}"

    @abstractmethod
    def _combined_gradient(self, point: PerturbedPoint) -> Passes[Blocks]:
        """Return the gradient that the base is to use, from as many passes as `passes` says."""

    @abstractmethod
    def _check_option(self, name: str, value: float) -> None:
        """Raise `InvalidArgumentError` if an own option has a value that is not allowed."""

    @property
    def _differentiates_twice(self) -> bool:
        """Whether gradients come from `torch.autograd.grad`, past DistributedDataParallel."""
        return False

    def _option(self, name: str, point: PerturbedPoint) -> list[float]:
        """Return the value of an own option for each block of a vector."""
        return [group[self._keys[name]] for group in point.groups]

    def _begun(self, scaler: "GradScaler | None", *, owner: Optimizer) -> Passes[None]:
        """Begin a step, and end one that was left open.

        Args:
            scaler: as in `step`; one that is disabled is none.
            owner: the optimizer that the scaler is to step.
        """
        # A loop that was left, and whose generator somebody holds: θ must be back first.
        if self._open is not None and (abandoned := self._open()) is not None:
            abandoned.close()
        for group in self.param_groups:
            self._check_options(group)
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        perturbed = self._steps % self._settings.every == 0
        combine = self._combined_gradient if perturbed else _plain_gradient
        step = self._under_way = Step(
            self.param_groups, combine, self._settings, scaler, twice=self._differentiates_twice
        )
        passes = self._passes_of(step, owner)
        self._open = weakref.ref(passes)
        return passes

    def _passes_of(self, step: Step, owner: Optimizer) -> Passes[None]:
        self._prepared = False
        for group in self.param_groups:  # as zero_grad does, which is slow on small networks
            for parameter in group["params"]:
                parameter.grad = None
        try:
            yield from step.passes(owner)
        finally:
            self._under_way = None
        self._prepared, self._loss = step.prepared, step.loss
        self._steps += 1

    def _step_prepared(self) -> Any:
        if not self._prepared:
            raise InvalidArgumentError(
                f"{type(self).__name__}.step needs a closure that returns the loss, because it "
                f"takes {self.passes} gradients a step: step(lambda: loss(model(x), y)); or a "
                "loop over gradient_passes() before it (after an overflow: scaler.step(optimizer))"
            )
        self.base.step()
        return self._stepped()

    def _stepped(self) -> Any:
        self._prepared = False
        loss, self._loss = self._loss, None
        return loss

    def _check_options(self, group: Mapping[str, Any]) -> None:
        for name, key in self._keys.items():
            if key in group:
                self._check_number(name, group[key])

    def _check_number(self, name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InvalidArgumentError(f"{name} must be a number, got {value!r}")
        self._check_option(name, float(value))


def _plain_gradient(point: PerturbedPoint) -> Passes[Blocks]:
    return point.gradient(kept=False)


def _fill(group: dict[str, Any], options: Mapping[str, float]) -> None:
    for key, value in options.items():
        group.setdefault(key, value)
