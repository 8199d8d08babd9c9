"""Whether θ holds all that a loss depends on: what is elsewhere is placed there too, or refused."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from flatkit.errors import InvalidArgumentError
from flatkit.objective.model.captured import graph_leaves, held_by, tensors_of
from flatkit.objective.model.copier import registered
from flatkit.objective.model.elsewhere import Elsewhere, Spot
from flatkit.objective.parameters import ParameterSpace
from flatkit.objective.passes import Chunk, chunk_of, share_of
from flatkit.objective.proofs.examination import Check, Found, prove
from flatkit.objective.pytree import tensors_in
from flatkit.objective.reading.randomness import undisturbed

if TYPE_CHECKING:
    from flatkit.objective.function import Objective
    from flatkit.objective.model.private_model import PrivateModel

_FEW = 8
"""Samples on which it is looked at where the function does not depend on the batch."""


class Trial(NamedTuple):
    """One evaluation on a few samples.

    Attributes:
        point: the leaf [P] that was placed.
        outputs: of the model.
        loss: what the samples add to it, a scalar.
        used_by_model: ids of tensors that the forward pass gave to calls of torch.
        given: ids of the tensors of the samples, which a model may let require gradients.
    """

    point: Tensor
    outputs: Any
    loss: Tensor
    used_by_model: frozenset[int]
    given: frozenset[int]


Run = Callable[[Elsewhere | None, Mapping[str, Tensor]], Trial]
"""(where else the point stands, further parameters of θ by name) -> an evaluation."""


def complete(function: "Objective", search: "Search", *, loss_parameters: bool) -> Check:
    """Let θ hold all that a loss depends on, and stand wherever the loss reads it.

    The graph of the loss is followed to its leaves, and the calls of torch are watched for tensors
    of the user's own. Cost: a forward pass over a few samples; three where something is found.

    Args:
        function: becomes complete.
        search: for what its parts hold.
        loss_parameters: make parameters of the loss part of θ.

    Raises:
        InvalidArgumentError: the loss depends on something that requires gradients and is not in
            θ; the message names it and the way out.
    """
    run = partial(_evaluate, function, _few(function))

    def proof() -> Found:
        found, added = _find(run, search, loss_parameters=loss_parameters)
        function.elsewhere = found
        if found is None:
            return True, "all leaves of the graph of the loss are in θ", None
        if function.reads_kept and found.beyond_outputs:
            _check_left(function)
        if not found.spots:
            return (
                True,
                "θ enters beside the outputs too: the loss reads what the model keeps",
                None,
            )
        names = _named(sorted({s.label for s in found.spots.values() if s.name is not None}))
        how = f"{names or 'constants'} stand in the user's own places too"
        return True, f"{how}; θ has {', '.join(added)} of the loss" if added else how, None

    return prove("complete", proof)


def _check_left(function: "Objective") -> None:
    """Refuse batches of several units, whose forward passes all come before their losses."""
    if function.samples.counts is not None:
        raise InvalidArgumentError(
            "the loss reads what the forward pass keeps in attributes of the model, and batches "
            "that cannot be cut into samples are measured, several of them in one pass; return "
            "what is kept as one of the outputs"
        )


def _few(function: "Objective") -> list[Chunk]:
    """Return some samples, and more of them for a model or loss that refuses so few."""
    size = min(len(function.samples), function.chunk_size)
    sizes = [size] if function.batchnorm == "train" else sorted({min(size, _FEW), size})
    parts = [function.samples.rows(slice(size)) for size in sizes]
    ones = [torch.ones(len(part)) for part in parts]
    return [chunk_of(p.inputs, p.targets, w, p.counts) for p, w in zip(parts, ones, strict=True)]


def _evaluate(
    function: "Objective",
    few: list[Chunk],
    elsewhere: Elsewhere | None,
    added: Mapping[str, Tensor],
) -> Trial:
    if added and not set(added) <= set(function.space.names):
        old = function.space.unflatten(function.theta)
        function.space = ParameterSpace.of({**old, **added})
        function.theta = function.space.flatten({**old, **added})
    function.elsewhere = elsewhere
    while True:
        try:
            return _on(function, few[0])
        except Exception:  # what the user's own code may raise of too few samples is not known
            if len(few) == 1:
                raise
            del few[0]


def _on(function: "Objective", chunk: Chunk) -> Trial:
    with undisturbed(), function.placed() as point:
        outputs = function.outputs(point, chunk)
        used = frozenset(() if function.elsewhere is None else function.elsewhere.used)
        share = share_of(function.losses(outputs, chunk.targets), chunk, 1.0)
    given = frozenset(map(id, tensors_in((chunk.inputs, chunk.targets))))
    return Trial(point, outputs, share, used, given)


def _find(
    run: Run, search: "Search", *, loss_parameters: bool
) -> tuple[Elsewhere | None, dict[str, Tensor]]:
    """Return where else a point has to stand, if anywhere, and what the loss adds to θ."""
    watched = search.watched
    trial = run(watched, {})
    foreign = search.foreign(trial)
    unknown = [leaf for leaf in foreign if search.spot(leaf) is None]
    # Tensors that a forward pass makes, as noise that
    # requires gradients, have another id each time.
    if unknown:  # a leaf that is made in every pass is no weight: is it there again?
        again = {id(leaf) for leaf in graph_leaves([run(watched, {}).loss])}
        made = {id(leaf) for leaf in unknown if id(leaf) not in again}
        foreign = [leaf for leaf in foreign if id(leaf) not in made]
    used = {key for key in watched.used if search.spots[key].matters}
    search.restore(watched.used)
    added = search.sort(foreign, trial, used, loss_parameters=loss_parameters)
    if not used:
        return _beside_outputs(trial), {}
    found = _settled(run, search, search.narrowed(used), added)
    # Read in the forward pass by calls of torch, or by a way that only the graph shows.
    # What is in the outputs was read by the model, else by the loss alone.
    through = {id(leaf) for leaf in graph_leaves(tensors_of(trial.outputs))}
    found.in_model = bool(used & (trial.used_by_model | through))
    return found, added


def _settled(
    run: Run, search: "Search", found: Elsewhere, added: Mapping[str, Tensor]
) -> Elsewhere:
    """Return the places with no more of them than needed, if nothing is left out then."""
    trial = run(found, added)
    left = [leaf for leaf in search.foreign(trial) if search.spot(leaf) is not None]
    if left:
        raise InvalidArgumentError(
            f"a function holds {_named(search.labels(left))} of your own model or loss, used "
            "where flatkit cannot let another point stand (a value computed beforehand, or a "
            "custom autograd function); compute it anew in every call, from the model's outputs "
            "or its attributes"
        )
    found.in_calls = any(search.spots[key].matters for key in found.used)
    found.beyond_outputs = _enters_beside_outputs(trial)
    return found


def _beside_outputs(trial: Trial) -> Elsewhere | None:
    """Return that θ enters beside the outputs, by what a model leaves for a loss, if it does."""
    if not _enters_beside_outputs(trial):
        return None
    found = Elsewhere({}, [], in_calls=False)
    found.beyond_outputs = True
    return found


def _enters_beside_outputs(trial: Trial) -> bool:
    above = {tensor.grad_fn for tensor in tensors_of(trial.outputs)} - {None}
    # The graph above the outputs is cut off: a point that is still found enters by another way.
    return any(leaf is trial.point for leaf in graph_leaves([trial.loss], below=above))


class Search:
    """The tensors that a model, a loss and their functions hold, each with a name.

    Args:
        private: the model.
        loss: as the user gave it.
        private_loss: its copy, or itself where it is no module.

    Attributes:
        watched: all their places, to be looked at while the function runs for the first time.
    """

    def __init__(self, private: "PrivateModel", loss: Any, private_loss: Any) -> None:
        self._copier = private.copier
        self._own = {id(p): n for n, p in private.model.named_parameters() if p.requires_grad}
        self._constants = {id(p) for p in private.model.parameters() if not p.requires_grad}
        self.spots: dict[int, Spot] = {}
        self.modules: list[tuple[nn.Module, nn.Module | None]] = list(private.modules)
        self._of_model = {id(module) for module, _ in self.modules}
        self._model_tensors = {id(t) for module, _ in self.modules for _, t in registered(module)}
        self._register("", private.source)
        if isinstance(loss, nn.Module):
            self._register("", loss)
        if isinstance(private_loss, nn.Module) and not isinstance(loss, torch.jit.ScriptModule):
            known = {id(module) for module in private.model.modules()}
            own = [(m, None) for m in private_loss.modules() if id(m) not in known]
            self.modules += own
        for name, thing in held_by([loss, private.source]).items():
            if isinstance(thing, nn.Module):
                self._register(name, thing)
            else:
                self._add(thing, name, in_module=False)
        for parameter in private.model.parameters():
            if id(parameter) in self._own:
                name = self._own[id(parameter)]
                self.spots.setdefault(
                    id(parameter), Spot(parameter, name, _itself, name, False, True)
                )

        self.watched = Elsewhere(self.spots, self.modules, in_modules=False)

    def spot(self, leaf: Tensor) -> Spot | None:
        """Return what is known of a leaf."""
        twins = {id(spot.twin): spot for spot in self.spots.values() if "twin" in vars(spot)}
        return self.spots.get(id(leaf)) or twins.get(id(leaf))

    def foreign(self, trial: Trial) -> list[Tensor]:
        """Return the leaves of a loss that are not the point, nor constants of the model."""
        known = {id(trial.point), *self._constants, *trial.given}
        return [leaf for leaf in graph_leaves([trial.loss]) if id(leaf) not in known]

    def labels(self, leaves: Iterable[Tensor]) -> list[str]:
        """Return what to call leaves."""
        spots = [(leaf, self.spot(leaf)) for leaf in leaves]
        return [
            f"a tensor of shape {list(leaf.shape)}" if spot is None else spot.label
            for leaf, spot in spots
        ]

    def restore(self, used: Iterable[int]) -> None:
        """Give private copies of buffers their values again: a captured layer may have trained."""
        with torch.no_grad():
            for spot in map(self.spots.__getitem__, used):
                if spot.name is None and spot.is_users:
                    spot.twin.copy_(spot.tensor)

    def sort(
        self, foreign: list[Tensor], trial: Trial, used: set[int], *, loss_parameters: bool
    ) -> dict[str, Tensor]:
        """Add to `used` what can stand elsewhere, return what the loss adds to θ, or refuse."""
        of_model = {id(leaf) for leaf in graph_leaves(tensors_of(trial.outputs))}
        own, in_model, in_loss = [], [], []
        for leaf in foreign:
            spot = self.spot(leaf)
            if spot is not None and spot.name is not None:
                own.append(leaf)
            else:
                (in_model if id(leaf) in of_model else in_loss).append(leaf)
        computed = [leaf for leaf in (*in_model, *in_loss) if self._is_computed(leaf)]
        if computed:
            raise InvalidArgumentError(_COMPUTED.format(_named(self.labels(computed))))
        # Of the shape [P] is only a point of an earlier pass: something kept its graph.
        kept = [x for x in foreign if x.shape == trial.point.shape and self.spot(x) is None]
        if kept:
            raise InvalidArgumentError(_KEPT)
        if in_model:
            raise InvalidArgumentError(_OF_MODEL.format(_named(self.labels(in_model))))
        if in_loss and not loss_parameters:
            raise InvalidArgumentError(_OF_LOSS.format(_named(self.labels(in_loss))))
        used |= {id(self.spot(leaf).tensor) for leaf in own}  # pyright: ignore
        order = {key: place for place, key in enumerate(self.spots)}
        # In the order of registration, so that θ is laid out alike in every run.
        in_loss.sort(key=lambda leaf: order.get(self._key(leaf), len(order)))
        return dict(self._join(leaf, used) for leaf in in_loss)

    def narrowed(self, used: set[int]) -> Elsewhere:
        """Return the places that matter: those of the user's model only if something holds it."""
        of_model = bool(used & self._model_tensors)
        modules: list[tuple[nn.Module, nn.Module | None]] = []
        spots = {key: self.spots[key] for key in used}
        for module, twin in self.modules:
            tensors = [tensor for _, tensor in registered(module)]
            mine = id(module) in self._of_model
            if (of_model and mine) or any(id(tensor) in used for tensor in tensors):
                modules.append((module, twin))
                known = {id(t): self.spots[id(t)] for t in tensors if id(t) in self.spots}
                spots |= known if mine else {}
        return Elsewhere(spots, modules)

    def _key(self, leaf: Tensor) -> int:
        spot = self.spot(leaf)
        return id(leaf if spot is None else spot.tensor)

    def _is_computed(self, leaf: Tensor) -> bool:
        spot = self.spot(leaf)
        return spot is not None and spot.tensor.grad_fn is not None

    def _register(self, prefix: str, root: nn.Module) -> None:
        known = {id(module) for module, _ in self.modules}
        for path, module in root.named_modules(prefix=prefix):
            if id(module) not in known and not isinstance(module, torch.jit.ScriptModule):
                self.modules.append((module, None))
            for own, tensor in registered(module):
                self._add(tensor, f"{path}.{own}" if path else own, in_module=True)

    def _add(self, tensor: Tensor, label: str, *, in_module: bool) -> None:
        copy = partial(self._copier.twin, constant=not in_module)
        twin = self._copier.known(tensor)
        name = None if twin is None else self._own.get(id(twin))
        spot = Spot(tensor, label, copy, name, True, in_module)
        if twin is not None:
            spot.twin = twin
        self.spots.setdefault(id(tensor), spot)

    def _join(self, leaf: Tensor, used: set[int]) -> tuple[str, Tensor]:
        """Let a leaf of the loss be a parameter of θ; return its name and its value."""
        spot = self.spot(leaf)
        if spot is None:
            self._add(leaf, f"tensor{len(self.spots)}", in_module=False)
            spot = self.spots[id(leaf)]
        spot.name = f"loss.{spot.label}"
        mine = Spot(spot.twin, spot.label, _itself, spot.name, False, spot.in_module)
        self.spots[id(spot.twin)] = mine
        used |= {id(spot.tensor), id(spot.twin)}
        return spot.name, spot.twin.detach()


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _named(labels: list[str]) -> str:
    few = ", ".join(labels[:4])
    return few if len(labels) <= 4 else f"{few} and {len(labels) - 4} more"


_OF_LOSS = (
    "the loss has parameters that require gradients and are not among those of the model: {}; they "
    "would be left out of θ. `loss_parameters=True` makes them part of it; for constants, such as "
    "the weights of a teacher, call `requires_grad_(False)`"
)
_COMPUTED = (
    "the loss depends on {}, which was computed from weights beforehand: at another point it would "
    "be that of this one. Compute it in every call, or, if it is a constant, `detach()` it"
)
_KEPT = (
    "the model or the loss keeps between calls what was computed in an earlier one, with its "
    "graph (a hidden state, a cache, a queue): `detach()` what is kept, and start each call anew, "
    "so that the loss is a function of the weights"
)
_OF_MODEL = (
    "the model uses tensors that require gradients and are not among its parameters: {}; they "
    "would be left out of θ. Register them (an nn.Parameter, a module, nn.ModuleList as attribute) "
    "and compute from them in `forward`, or, for constants, call `requires_grad_(False)`"
)
