"""Weights in other places than the private model: in the user's own modules, and in functions.

A loss, a lambda or a hook may hold the user's own model, some of its tensors, or modules of its
own. While a point stands in the private model, it then stands there too: in the places of those
modules, and, where a function holds a tensor itself, in every call of torch that is given it.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, final

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flatkit.objective.model.copier import Copier


@dataclass(eq=False)
class Spot:
    """A tensor that the code of the user holds, and what stands for it.

    Attributes:
        tensor: the one that is held.
        label: what messages call it.
        copy: gives the private copy of a tensor, the same one every time.
        name: of the parameter of θ that it is; None of a constant.
        is_users: it is the user's, not one of the private copies.
        in_module: a module registers it.
    """

    tensor: Tensor
    label: str
    copy: Callable[[Tensor], Tensor]
    name: str | None = None
    is_users: bool = True
    in_module: bool = False

    @cached_property
    def twin(self) -> Tensor:
        """The private copy; made when it is first needed."""
        return self.copy(self.tensor) if self.is_users else self.tensor

    @property
    def matters(self) -> bool:
        """Whether what is computed differs if the tensor is left where it is."""
        # A constant of the same dtype and device is as good where it is.
        same = (self.tensor.dtype, self.tensor.device) == (self.twin.dtype, self.twin.device)
        return self.name is not None or self.in_module or not same


@final
class Elsewhere:
    """Where else than in the private model a point stands.

    Args:
        spots: tensors by their ids.
        modules: each with the private copy whose mode it takes meanwhile, or None.
        in_modules: put the tensors into the places of the modules.
        in_calls: put them into the calls of torch.

    Attributes:
        used: ids of the tensors that calls of torch were given.
        in_model: something of this is read in the forward pass of the model.
        beyond_outputs: θ enters the loss otherwise than through the outputs of the model.
        is_standing: a point stands there.
    """

    def __init__(
        self,
        spots: Mapping[int, Spot],
        modules: Sequence[tuple[nn.Module, nn.Module | None]],
        *,
        in_modules: bool = True,
        in_calls: bool = True,
    ) -> None:
        self.spots, self.modules = spots, modules
        self.in_modules, self.in_calls = in_modules, in_calls
        self.used: set[int] = set()
        self.in_model = self.beyond_outputs = self.is_standing = False
        # By the places: when a point stands in another, these hold the parts of the outer one.
        self._slots: list[tuple[dict[str, Tensor | None], str, Spot]] = [
            (register, own, self.spots[id(tensor)])
            for module, _ in self.modules
            for register in map(vars(module).__getitem__, ("_parameters", "_buffers"))
            for own, tensor in register.items()
            if id(tensor) in self.spots
        ]

    @contextmanager
    def standing(self, parts: Mapping[str, Tensor]) -> Generator[None]:
        """Let the parameters of a point stand in these places; what was there comes back.

        Args:
            parts: by name; parameters that are not among them keep their values.
        """

        def standing(spot: Spot) -> Tensor:
            return spot.twin if spot.name is None else parts.get(spot.name, spot.twin)

        def now(tensor: Tensor) -> Tensor:
            spot = self.spots.get(id(tensor))
            return tensor if spot is None else standing(spot)

        with ExitStack() as stack:
            # Modes and values of the user's modules come
            # back even where they are changed in the call.
            for module, twin in self.modules:
                stack.enter_context(kept(module))
                if twin is not None and self.in_modules:
                    _take_mode(module, twin)
            for register, own, spot in self._slots if self.in_modules else ():
                register[own] = standing(spot)
            if self.in_calls:
                stack.enter_context(StandIns(now, self.used))
            # The flag of before, as places may nest: a loss is asked inside of a pass of the model.
            before, self.is_standing = self.is_standing, True
            try:
                yield
            finally:
                self.is_standing = before

    def moved(self, copier: Copier) -> "Elsewhere":
        """Return the same places for copies of the private model and loss."""
        twin_of = partial(copier.twin, constant=False)
        spots: dict[int, Spot] = {}
        for spot in self.spots.values():
            tensor = spot.tensor if spot.is_users else twin_of(spot.tensor)
            spots[id(tensor)] = replace(spot, tensor=tensor, copy=_both(spot.copy, twin_of))
        modules = [
            (module if (copied := copier.known(module)) is None else copied, twin)
            for module, twin in self.modules
        ]
        other = Elsewhere(spots, modules, in_modules=self.in_modules, in_calls=self.in_calls)
        other.in_model, other.beyond_outputs = self.in_model, self.beyond_outputs
        return other


@final
class StandIns(TorchFunctionMode):
    """Puts other tensors in the place of some, in every call of torch that is given them.

    Args:
        now: a tensor -> what stands for it, or itself.
        used: gets the ids of those that others stood for.

    >>> import torch
    >>> held = torch.ones(1)
    >>> with StandIns(lambda tensor: torch.zeros(1) if tensor is held else tensor, set()):
    ...     held + 1
    tensor([1.])
    """

    def __init__(self, now: Callable[[Tensor], Tensor], used: set[int]) -> None:
        super().__init__()
        self._now, self._used = now, used

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call with what stands in the places of the arguments."""
        kwargs = {key: self._standing(part) for key, part in (kwargs or {}).items()}
        return func(*map(self._standing, args), **kwargs)

    def _standing(self, part: Any) -> Any:
        if isinstance(part, Tensor):
            other = self._now(part)
            if other is not part:
                self._used.add(id(part))
            return other
        # Exact types: a named tuple cannot be made again of one sequence.
        if type(part) in (list, tuple):
            return type(part)(map(self._standing, part))
        if type(part) is dict:
            return {key: self._standing(value) for key, value in part.items()}
        return part


@contextmanager
def kept(module: nn.Module) -> Generator[None]:
    """Put back what a module holds when the block ends, where it was changed.

    >>> import torch
    >>> layer = nn.Linear(1, 1)
    >>> with kept(layer):
    ...     layer.last, layer.weight = 5, nn.Parameter(torch.zeros(1, 1))
    >>> hasattr(layer, "last"), layer.weight == 0
    (False, tensor([[False]]))
    """
    holders: list[dict[str, Any]] = [vars(module), *map(vars(module).__getitem__, _REGISTERS)]
    before = [dict(holder) for holder in holders]
    try:
        yield
    finally:
        for holder, held in zip(holders, before, strict=True):
            # The default `held` is never a value of its own: a missing key counts as changed.
            if len(holder) != len(held) or any(holder.get(k, held) is not held[k] for k in held):
                holder.clear()
                holder.update(held)


_REGISTERS = ("_parameters", "_buffers", "_modules")


def _both(
    first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    return lambda tensor: second(first(tensor))


def _take_mode(module: nn.Module, twin: nn.Module) -> None:
    for mode in ("training", "track_running_stats"):
        if mode in vars(twin):
            vars(module)[mode] = vars(twin)[mode]
