"""Copies of modules and of what they hold, in one dtype, also where `copy.deepcopy` fails."""

import copy
import types
import weakref
from collections import deque
from collections.abc import Iterable
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flatkit.errors import InvalidArgumentError
from flatkit.objective.pytree import dtype_like

T = TypeVar("T")
_ATOMIC = (
    type(None),
    int,
    float,
    complex,
    bytes,
    str,
    type,
    range,
    types.CodeType,
    types.FunctionType,
    types.BuiltinFunctionType,
    weakref.ref,
    torch.dtype,
    torch.device,
)
"""What is never copied. Functions are among them: what they hold stays the user's own."""


class Copier:
    """Copies what it is given, and once only what several of its copies hold.

    Tensors are detached and converted. Of the rest everything is copied that can be; what cannot
    (locks, open files, generators, process groups) is shared. A tensor that was computed, such as
    an activation that a layer keeps, becomes a leaf.

    Args:
        dtype: of parameters, buffers and those constants that have the dtype of parameters; complex
            ones get the complex dtype of the same width. None keeps all.
        device: None keeps them where they are.

    Attributes:
        pairs: the tensors that were copied, each with its copy.

    >>> layer = nn.Linear(2, 1).requires_grad_(False)
    >>> twin = Copier(torch.float64).copy(layer)
    >>> twin.weight.dtype, twin.weight.requires_grad, layer.weight.dtype
    (torch.float64, False, torch.float32)
    """

    def __init__(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> None:
        self._dtype, self._device = dtype, device
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.modules: list[tuple[nn.Module, nn.Module]] = []
        self._memo: dict[int, Any] = {}
        self._seen: dict[int, Any] = {}  # holds what it names, so that no id is used again
        self._alive: list[Any] = []
        self._plain: dict[int, Any] = {}
        self._constants: set[torch.dtype] = set()

    def known(self, thing: T) -> T | None:
        """Return the copy of a tensor, module or object, if there is one."""
        return self._memo.get(id(thing))

    def adopt(self, old: nn.Module, new: nn.Module) -> None:
        """Take a module for the copy of another one of the same names, with all its parts."""
        for name, module in old.named_modules():
            twin = new.get_submodule(name)
            pairs = [(module, twin)]
            pairs += zip(  # pyright: ignore
                [tensor for _, tensor in registered(module)],
                [tensor for _, tensor in registered(twin)],
                strict=True,
            )
            # What a forward pass may keep things in, for a loss that looks there.
            kept = [(part, vars(twin).get(key)) for key, part in vars(module).items()]
            pairs += [(a, b) for a, b in kept if isinstance(a, (dict, list)) and type(a) is type(b)]
            for thing, other in pairs:
                self._seen[id(thing)], self._memo[id(thing)] = thing, other

    def copied(self, loss: T) -> T:
        """Return a copy of a loss that is a module, and any other function as it is."""
        if isinstance(loss, torch.jit.ScriptModule):  # has no parts that could be shared
            return copy.deepcopy(loss).to(self._device, self._dtype)
        return self.copy(loss) if isinstance(loss, nn.Module) else loss

    @torch.inference_mode(False)
    def copy(self, thing: T) -> T:
        """Return a copy of a module, a tensor, or an object that holds some.

        Raises:
            InvalidArgumentError: the object cannot be copied.
        """
        modules = list(thing.modules()) if isinstance(thing, nn.Module) else []
        for module in modules:
            inner = dict(module.named_children()).get(
                "_orig_mod"
            )  # what a compiled part of a model wraps
            # Once only: a compiled part that stands in two places stays one module.
            if inner is not None and id(module) not in self._memo:
                # What torch.compile made wraps the plain part: the copy is of that, uncompiled.
                self._memo[id(module)] = self.copy(inner)
        for tensor in _all_registered(modules):
            # All dtypes first: which constants are converted depends on those of every parameter.
            self._constants.add(tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype)
        for tensor in _all_registered(modules):
            self.twin(tensor, constant=False)
        self._walk(thing)
        twin = self._deep_copy(thing)
        self.modules += [(m, self._memo[id(m)]) for m in modules if id(m) in self._memo]
        return twin

    def _deep_copy(self, thing: T) -> T:
        # Whatever an object does when it is copied is its own code, and may raise anything. Those
        # that are no tensor, module or collection are then shared, and it is tried once more.
        try:
            return self._tried(thing, {})
        except Exception:
            pass
        try:
            return self._tried(thing, self._plain)
        except Exception as error:
            raise InvalidArgumentError(
                f"a {type(thing).__name__} cannot be copied ({type(error).__name__}: {error}), and "
                "flatkit measures a copy, lest it changes yours; give `__deepcopy__` or "
                "`__getstate__` to what it holds, or take it off"
            ) from error

    def _tried(self, thing: T, shared: dict[int, Any]) -> T:
        # A copy of the memo, as a try that fails leaves half-made objects in it.
        memo = {**self._memo, **shared}
        twin = copy.deepcopy(thing, memo)
        self._alive.append(memo.pop(id(memo), None))  # or ids in the memo would be used again
        self._memo = memo
        return twin

    def _walk(self, thing: Any) -> None:
        """Give every tensor that is held its copy, and share what cannot be copied."""
        stack = [thing]
        while stack:
            thing = stack.pop()
            if isinstance(thing, _ATOMIC) or id(thing) in self._seen:
                continue
            self._seen[id(thing)] = thing
            if isinstance(thing, Tensor):
                self.twin(thing, constant=True)
            # `deepcopy` would pickle a module of Python, which fails.
            elif isinstance(thing, types.ModuleType):
                self._memo[id(thing)] = thing
            elif id(thing) not in self._memo:
                stack.extend(self._held(thing))

    def _held(self, thing: Any) -> Iterable[Any]:
        if isinstance(thing, nn.Module):
            return vars(thing).values()
        if isinstance(thing, dict):
            return chain(thing.keys(), thing.values())  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(thing, (list, tuple, set, frozenset, deque)):
            return thing  # pyright: ignore[reportUnknownVariableType]
        if isinstance(thing, types.MethodType):
            return (thing.__self__,)
        self._plain[id(thing)] = thing
        # It copies itself in its own manner; what it gives to `deepcopy` in turn meets the memo.
        if hasattr(type(thing), "__deepcopy__"):
            return ()
        try:
            state = thing.__reduce_ex__(4)  # what copy.deepcopy goes by
        except Exception:  # a lock, an open file, a generator: its own code says that it cannot
            self._memo[id(thing)] = thing
            return ()
        if isinstance(state, str):
            return ()
        # Arguments and state; the items of lists and dictionaries.
        return chain(state[1:3], *(part or () for part in state[3:5]))

    def twin(self, tensor: Tensor, *, constant: bool) -> Tensor:
        """Return the copy of a tensor, the same one every time.

        Args:
            tensor: any.
            constant: it is neither a parameter nor a buffer.
        """
        if id(tensor) in self._memo:
            return self._memo[id(tensor)]
        if constant and tensor.is_meta:  # a skeleton, into which the model puts weights by name
            self._seen[id(tensor)] = self._memo[id(tensor)] = tensor
            return tensor
        refuse_without_values(tensor)
        dtype = self._dtype_for(tensor, constant=constant)
        # Always a copy: `to` alone returns the user's own tensor where nothing changes.
        twin = tensor.detach().to(device=self._device, dtype=dtype, copy=True)
        if isinstance(tensor, nn.Parameter):
            # One of a tensor class of its own counts as a parameter by a mark alone.
            kind = type(tensor) if nn.Parameter in type(tensor).__mro__ else nn.Parameter
            twin = kind(twin, tensor.requires_grad)
            vars(twin).update(vars(tensor))
        else:
            # Also where it was computed: should the model use it, it is found among the leaves.
            twin.requires_grad_(tensor.requires_grad)
        self._seen[id(tensor)] = tensor
        self._memo[id(tensor)] = twin
        self.pairs.append((tensor, twin))
        return twin

    def _dtype_for(self, tensor: Tensor, *, constant: bool) -> torch.dtype:
        wide = self._dtype
        real = tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype
        kept = constant and self._constants and real not in self._constants
        return tensor.dtype if wide is None or kept else dtype_like(tensor.dtype, wide)


def duplicate(module: T, dtype: torch.dtype | None = None) -> T:
    """Return a copy of a private model or loss.

    >>> duplicate(nn.Linear(1, 1), torch.float64).weight.dtype
    torch.float64
    """
    return Copier(dtype).copy(module)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of DataParallel, DDP, torch.compile, and averages of weights.

    >>> unwrapped(torch.optim.swa_utils.AveragedModel(nn.Linear(1, 1)))
    Linear(in_features=1, out_features=1, bias=True)
    """
    parts = dict(model.named_children())
    inner = parts.get("_orig_mod")
    if inner is None and _only_wraps(model):
        inner = parts.get("module")
    return model if inner is None else unwrapped(inner)


def _only_wraps(model: nn.Module) -> bool:
    known = (
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
        torch.optim.swa_utils.AveragedModel,
    )
    # Averages of other packages keep the model as `module`, and have no forward of their own.
    # A ModuleDict has none either, and its entry `module` is one of several.
    no_forward = type(model).forward is nn.Module.forward
    return isinstance(model, known) or (no_forward and not isinstance(model, nn.ModuleDict))


def refuse_uncopyable(model: nn.Module) -> None:
    """Refuse models whose code or weights cannot be had.

    Raises:
        InvalidArgumentError: TorchScript, shards, or tensors without values; it says what to do.

    >>> refuse_uncopyable(nn.Linear(1, 1))
    """
    for path, module in model.named_modules():
        where = f"{path} is" if path else "the model is"
        if isinstance(module, torch.jit.ScriptModule):
            raise InvalidArgumentError(
                f"{where} a TorchScript module ({module.original_name}), compiled by "
                "torch.jit.script or torch.jit.trace: it has no second derivatives and cannot be "
                "copied; give the module that was scripted"
            )
        # By name: to import the class takes seconds, and torch may be built without it.
        kinds = {kind.__name__ for kind in type(module).__mro__}
        tensors = list(module.named_parameters(recurse=False))
        if "FullyShardedDataParallel" in kinds:
            raise InvalidArgumentError(
                f"{where} sharded over processes by FullyShardedDataParallel, whose parameters are "
                "flattened; gather a full state dict and load it into the plain model, or shard it "
                "by fully_shard, which is measured in place"
            )
        for name, tensor in chain(tensors, module.named_buffers(recurse=False)):
            refuse_without_values(tensor, f"{path}.{name}" if path else name)
        for name, tensor in tensors:
            _refuse_sparse(tensor, f"{path}.{name}" if path else name)
            _refuse_own_class(tensor, f"{path}.{name}" if path else name)


def refuse_without_values(tensor: Tensor, name: str = "a tensor") -> None:
    """Refuse tensors on the meta device and those of lazy layers that never ran.

    Raises:
        InvalidArgumentError: it has no values; it says what to do.

    >>> refuse_without_values(torch.ones(1))
    """
    if nn.parameter.is_lazy(tensor):
        raise InvalidArgumentError(
            f"{name} belongs to a lazy layer that never ran and is not initialised; run the model "
            "once, e.g. `model(inputs[:2])`, then measure it"
        )
    if tensor.is_meta:
        raise InvalidArgumentError(
            f"{name} is on the meta device, where tensors have no values; call "
            "`model.to_empty(device='cpu')` and load the weights"
        )


def _refuse_sparse(parameter: Tensor, name: str) -> None:
    """Refuse free parameters of which the places are no numbers, and so no coordinates of θ."""
    if parameter.requires_grad and parameter.layout is not torch.strided:
        raise InvalidArgumentError(
            f"{name} is a sparse parameter, of {parameter.layout}: let its values be the parameter "
            "and make the sparse tensor of them in `forward`, torch.sparse_coo_tensor(places, "
            "self.values, shape); make it dense, tensor.to_dense(); or hold it constant, "
            "requires_grad_(False)"
        )


def _refuse_own_class(parameter: Tensor, name: str) -> None:
    """Refuse free parameters whose class may change what operations do: θ is a plain vector."""
    kind = type(parameter)
    if parameter.requires_grad and not issubclass(kind, nn.Parameter):
        raise InvalidArgumentError(
            f"{name} is a parameter of the tensor class {kind.__name__}, which may compute "
            "otherwise than a plain tensor does: make it plain, "
            "nn.Parameter(parameter.detach().as_subclass(torch.Tensor)), or hold it constant, "
            "requires_grad_(False)"
        )


def notes_on(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what libraries note on parameters, by their names; the forward pass may read it.

    So does that of µP (`weight.infshape`): what stands in the place of a parameter has it too.

    >>> notes_on(nn.Linear(1, 1))
    {}
    """
    return {name: dict(vars(p)) for name, p in model.named_parameters() if vars(p)}


def parameter_places(model: nn.Module) -> dict[tuple[str, str], str]:
    """Return every place of a parameter, by module and own name -> its name in `named_parameters`.

    A module that stands in several places is visited once.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> parameter_places(nn.Sequential(layer, layer))
    {('0', 'weight'): '0.weight'}
    """
    names: dict[int, str] = {}  # by ids; of several names the first is that of named_parameters
    places: dict[tuple[str, str], str] = {}
    for prefix, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{own}" if prefix else own
            places[prefix, own] = names.setdefault(id(parameter), name)
    return places


def registered(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the parameters and buffers that a module itself registers, by its own names.

    >>> [name for name, _ in registered(nn.Linear(1, 1))]
    ['weight', 'bias']
    """
    own = chain(module._parameters.items(), module._buffers.items())  # pyright: ignore
    return [(name, tensor) for name, tensor in own if tensor is not None]


def _all_registered(modules: list[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for _, tensor in registered(module)]
