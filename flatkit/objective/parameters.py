"""The flat vector θ and its parts: names, shapes, offsets, filters.

A point in parameter space is one vector `theta` of shape `[P]`. Only this module knows which
entries belong to which parameter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from math import prod

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError


@dataclass(frozen=True)
class ParameterSpace:
    """Named tensors laid end to end in one vector of reals.

    A complex entry is two reals, its real and its imaginary part, one after the other.

    Attributes:
        names: the parameters, in the order of the vector.
        shapes: their shapes as reals, in the same order: those of complex ones end in a 2.
        complex_names: those that are complex.

    >>> space = ParameterSpace.of({"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    >>> space.size
    8
    >>> space.unflatten(torch.arange(8.0))["bias"]
    tensor([6., 7.])
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    complex_names: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "ParameterSpace":
        """Return the space of the given tensors, in their order.

        Raises:
            InvalidArgumentError: there is none.
        """
        if not tensors:
            raise InvalidArgumentError(
                "the model has no free parameters; at least one needs requires_grad=True"
            )
        shapes = tuple(tuple(as_real(tensor).shape) for tensor in tensors.values())
        of_complex = frozenset(name for name, tensor in tensors.items() if tensor.is_complex())
        return cls(tuple(tensors), shapes, of_complex)

    @property
    def sizes(self) -> list[int]:
        """The number of entries of each parameter."""
        return [prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """The number of entries P of the whole vector."""
        return sum(self.sizes)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the vector [P] of the given tensors, a copy.

        Raises:
            InvalidArgumentError: a tensor is missing or has another shape.
        """
        parts = {name: as_real(tensors[name]) for name in self.names if name in tensors}
        for name, shape in zip(self.names, self.shapes, strict=True):
            # Before the shapes: a real tensor [n, 2] would pass for a complex one [n].
            if name in tensors and tensors[name].is_complex() != (name in self.complex_names):
                kinds = ("complex", "real") if name in self.complex_names else ("real", "complex")
                raise InvalidArgumentError(f"{name} must be {kinds[0]}, got {kinds[1]} entries")
            if name not in tensors or tuple(parts[name].shape) != shape:
                found = tuple(parts[name].shape) if name in tensors else "nothing"
                raise InvalidArgumentError(f"{name} must have the shape {shape}, got {found}")
        return torch.cat([parts[name].reshape(-1) for name in self.names])

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the parameters as views of the vector, differentiable with respect to it.

        Complex ones are copies: no view of reals has a complex dtype at every offset. So are those
        of pairs, of which a model may make complex numbers.

        Raises:
            InvalidArgumentError: the vector does not have the shape [P].
        """
        return self.shaped(self._split(theta))

    def shaped(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the parameters by name from their entries, each a vector of reals.

        >>> ParameterSpace(("bias",), ((1, 2),), frozenset({"bias"})).shaped([torch.ones(2)])
        {'bias': tensor([1.+1.j])}
        """
        of_complex = self.complex_names
        return {
            name: _as_complex(part.view(shape)) if name in of_complex else _placed(part.view(shape))
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def filters(self, theta: Tensor) -> dict[str, Tensor]:
        """Return each parameter as a matrix [F, ...] with one filter in a row, views of the vector.

        A filter is a slice along the first dimension of a weight of two or more dimensions (Li et
        al., 2018: the weights that make one neuron or channel). Parameters of fewer dimensions
        (biases, the scale and shift of a normalisation layer) are one row.

        >>> space = ParameterSpace.of({"weight": torch.ones(2, 3, 1), "bias": torch.zeros(2)})
        >>> {name: list(rows.shape) for name, rows in space.filters(torch.zeros(8)).items()}
        {'weight': [2, 3], 'bias': [1, 2]}
        """
        found: dict[str, Tensor] = {}
        for name, part, shape in zip(self.names, self._split(theta), self.shapes, strict=True):
            rows = shape[0] if self.is_weight(name) else 1
            found[name] = part.view(rows, prod(shape[1:]) if self.is_weight(name) else prod(shape))
        return found

    def matching(self, patterns: Sequence[str]) -> list[str]:
        """Return the names that a shell pattern matches, in the order of the vector.

        Raises:
            InvalidArgumentError: a pattern matches none.

        >>> space = ParameterSpace(("a.weight", "a.bias", "b.weight"), ((1,), (1,), (1,)))
        >>> space.matching(["a.*"])
        ['a.weight', 'a.bias']
        """
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in self.names):
                few = ", ".join(self.names[:6]) + (", ..." if len(self.names) > 6 else "")
                raise InvalidArgumentError(
                    f"params {pattern!r} matches no free parameter; there are {few}"
                )
        return [n for n in self.names if any(fnmatchcase(n, pattern) for pattern in patterns)]

    def layers(self) -> dict[str, list[str]]:
        """Return the layers, by the path of the module, with the names of their parameters.

        >>> space = ParameterSpace(("a.weight", "a.bias", "b.weight"), ((1,), (1,), (1,)))
        >>> space.layers()
        {'a': ['a.weight', 'a.bias'], 'b': ['b.weight']}
        """
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(_layer_of(name), []).append(name)
        return found

    def layer_sizes(self) -> tuple[int, ...]:
        """Return the sizes of the runs of parameters of one layer, in the order of the vector.

        >>> ParameterSpace(("a.weight", "a.bias", "b.weight"), ((6,), (2,), (3,))).layer_sizes()
        (8, 3)
        """
        pairs = zip(self.names, self.sizes, strict=True)
        # Runs, not layers: one whose parameters lie apart in the vector makes two.
        runs = groupby(pairs, lambda pair: _layer_of(pair[0]))
        return tuple(sum(size for _, size in run) for _, run in runs)

    def is_weight(self, name: str) -> bool:
        """Whether a parameter has filters, that is two or more dimensions."""
        # The last dimension of a complex one is the pair of its parts.
        return len(self.shapes[self.names.index(name)]) - (name in self.complex_names) >= 2

    def filter_norms(self, theta: Tensor) -> Tensor:
        """Return for each entry the size [P] of what it belongs to, for filter-wise scaling.

        An entry of a weight gets the norm of its filter, an entry of a parameter without filters
        (a bias, the scale of a normalisation layer) its own magnitude, as in Kwon et al. (2021),
        both reals of a complex one its modulus.

        >>> space = ParameterSpace.of({"weight": torch.ones(2, 2), "bias": torch.zeros(2)})
        >>> space.filter_norms(torch.tensor([3.0, 4.0, 0.0, 2.0, -1.0, 0.5]))
        tensor([5.0000, 5.0000, 2.0000, 2.0000, 1.0000, 0.5000])
        """
        return torch.cat(
            [
                # Every entry gets the norm of its whole filter (Li et al. 2018), not its own size.
                rows.norm(dim=1, keepdim=True).expand_as(rows).reshape(-1)
                if self.is_weight(name)
                else self._magnitudes(name, rows)
                for name, rows in self.filters(theta).items()
            ]
        )

    def _split(self, theta: Tensor) -> tuple[Tensor, ...]:
        if theta.shape != (self.size,):
            raise InvalidArgumentError(
                f"theta must have the shape [{self.size}], got {list(theta.shape)}"
            )
        return theta.split(self.sizes)

    def _magnitudes(self, name: str, rows: Tensor) -> Tensor:
        if name not in self.complex_names:
            return rows.abs().reshape(-1)
        pairs = rows.view(-1, 2)  # [1, 2n] -> [n, 2]
        return pairs.norm(dim=1, keepdim=True).expand_as(pairs).reshape(-1)


def as_real(tensor: Tensor) -> Tensor:
    """Return complex entries as pairs of reals [..., 2], and real ones as they are.

    >>> as_real(torch.tensor([1.0 + 2.0j]))
    tensor([[1., 2.]])
    """
    # `view_as_real` refuses a conjugate that torch has not computed yet.
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def check_like(name: str, given: Tensor, like: Tensor) -> None:
    """Refuse what is no tensor of the shape and dtype, and on the device, of another.

    Raises:
        InvalidArgumentError: it is another.

    >>> check_like("theta", torch.zeros(3), torch.zeros(2))
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: theta must have the shape [2], got [3]
    """
    if not isinstance(given, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgumentError(
            f"{name} must be a tensor of {like.dtype} on {like.device}, got a "
            f"{type(given).__name__}; convert it: torch.as_tensor({name}, dtype={like.dtype})"
        )
    if given.dtype != like.dtype or given.device != like.device:
        raise InvalidArgumentError(
            f"{name} must be a tensor of {like.dtype} on {like.device}, got {given.dtype} on "
            f"{given.device}; convert it: {name}.to({str(like.device)!r}, {like.dtype})"
        )
    if given.shape != like.shape:
        raise InvalidArgumentError(
            f"{name} must have the shape {list(like.shape)}, got {list(given.shape)}"
        )


def _as_complex(pairs: Tensor) -> Tensor:
    return torch.complex(pairs[..., 0], pairs[..., 1])


def _placed(part: Tensor) -> Tensor:
    """Return entries where `torch.view_as_complex` takes them: pairs not at an odd place.

    Its derivatives of every order lie so too, which is why it is no clone; nor is it a product,
    which autograd could not go back through once for every chunk.
    """
    return part.neg().neg() if part.shape[-1:] == (2,) else part


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0] or name
