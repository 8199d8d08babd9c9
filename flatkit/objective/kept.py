"""Answers of dear passes over the samples, kept in a store: a run that was killed replays them.

What is asked for is known by a digest of the function, the point and the vector, and what comes
back is what was computed, bit for bit. Small networks pay nothing: what was quick is not kept, and
is only looked for after something was slow.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol, TypeAlias, final

import torch
from torch import Tensor

from flatkit.devices.ranks import ALONE, Ranks
from flatkit.files.store import Store
from flatkit.results.cost import Cost

Answer: TypeAlias = tuple[Any, ...]
"""What a pass gives: numbers (or None), and tensors on its device."""

LEAST_SECONDS = 0.02
_BYTES_A_SECOND, _FREE_BYTES = 20_000_000, 2**16
"""Of a point, a vector and an answer, so many a second of the pass: to digest and to write them
takes then a tenth of it at most, at the 150 MB a second of a slow disk."""
_PIECE = 2**24
PRODUCT = "product"
"""What the product with one vector is called, beside which that vector is kept."""
_LOOKED_AT, _NEAR, _NEARBY = 16, 1e-2, "near vectors"
"""Entries by which a vector is found that is another one but for rounding, and how near it is: what
a recurrence rounds grows where its couplings fall, and random vectors are far apart."""
_DEAR = "dear passes"


class Counts(Protocol):
    """What is asked for its passes: an objective."""

    @property
    def kept(self) -> "Passes | None":
        """Where they are kept, if anywhere."""
        ...

    @property
    def theta(self) -> Tensor:
        """Its own point [P]."""
        ...

    def count(self, *, losses: int = 0, gradients: int = 0, matvecs: int = 0) -> None:
        """Count what was computed."""
        ...


@final
class Passes:
    """The dear passes of one function over all the samples, in a store.

    `Objective.kept` is one, or None; whoever makes a pass asks for it first.

    Of several ranks the first has the store, and tells the others what it holds.

    Args:
        store: open as long as this is in use; where it fails, nothing more is kept. None on the
            ranks that are not the first.
        function: a digest of the function of θ; `digest_of` makes it.
        least_seconds: of a pass that is kept; by default `LEAST_SECONDS`.
        ranks: that make the passes together.
    """

    def __init__(
        self,
        store: Store | None,
        function: str,
        *,
        least_seconds: float | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.store, self.function, self._ranks = store, function, ranks
        self._least = LEAST_SECONDS if least_seconds is None else least_seconds
        self._dear = set[str]() if store is None else set(store.records(_DEAR))
        self._nearby = {} if store is None else store.records(_NEARBY)
        # Asked once: of several ranks each question is a message to all of them.
        self._goes_on: bool | None = (
            None  # whether a run before kept vectors, as the first rank knows
        )
        self._decided: dict[tuple[str, str], Any] = {}

    def part(self, names: Sequence[str], theta: Tensor) -> "Passes":
        """Return the passes of the same loss as a function of some parameters alone.

        Args:
            names: of the parameters.
            theta: at which the others are held fixed [P].
        """
        digest = digest_of_tensors(json.dumps([self.function, *names]), [theta])
        part = Passes(self.store, digest, least_seconds=self._least, ranks=self._ranks)
        part._dear = self._dear
        return part

    def alone(self) -> "Passes | None":
        """Return those of passes that one rank makes by itself; None where it has no store."""
        if self.store is None:
            return None
        alone = Passes(self.store, self.function, least_seconds=self._least)
        alone._dear = self._dear
        return alone

    def find(self, what: str, given: Sequence[Tensor]) -> Answer | None:
        """Return what came of a pass, if it was dear and is kept.

        Args:
            what: is computed, with all that the last bits depend on.
            given: the point, and further tensors.
        """
        # As bytes, since the ranks may compute on other devices than the first one.
        data = self._ranks.from_first(lambda: self._find(what, given))
        return None if data is None else _unpacked(data, given[0].device)

    def find_near(self, what: str, theta: Tensor, vector: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return a vector [P] that is another but for rounding, and its product, of a run before.

        With other ranks, threads or processors sums are rounded otherwise, and a run that goes on
        comes to other last digits: by its own vectors it would find nothing again. A search that
        takes this vector in place of its own follows the run before, bit for bit.

        Args:
            what: the product.
            theta: the point [P].
            vector: [P].
        """
        if self._goes_on is None:
            self._goes_on = self._ranks.decided(lambda: bool(self._nearby))
        if not self._goes_on:
            return None
        data = self._ranks.from_first(lambda: self._find_near(what, theta, vector))
        return None if data is None else _pair(_unpacked(data, theta.device))

    def _find_near(self, what: str, theta: Tensor, vector: Tensor) -> bytes | None:
        if self.store is None:
            return None
        place, entries = self._place(what, theta), _entries(vector)
        # Relative to the largest entry seen: those of a
        # unit vector of a million entries are all small.
        near = _NEAR * max(map(abs, entries))
        for key, record in self._nearby.items():
            # A few entries tell most vectors apart: the disk is read for the others alone.
            pairs = zip(record["entries"], entries, strict=True)
            if record["of"] != place or max(abs(a - b) for a, b in pairs) > near:
                continue
            packed, product = self.store.blob(f"{key} vector"), self.store.blob(key)
            if packed is None or product is None:
                continue
            (other,) = _unpacked(packed, vector.device)
            if float((other - vector).norm()) <= _NEAR * float(vector.norm()):
                return _packed((other, *_unpacked(product, vector.device)))
        return None

    def _keep_vector(self, key: str, what: str, theta: Tensor, vector: Tensor) -> None:
        if self.store is not None and self.store.put_blob(f"{key} vector", _packed((vector,))):
            record = {"of": self._place(what, theta), "entries": _entries(vector)}
            self.store.put(_NEARBY, key, record)

    def _place(self, what: str, theta: Tensor) -> str:
        return digest_of_tensors(f"{self.function} {what}", [theta])

    def _find(self, what: str, given: Sequence[Tensor]) -> bytes | None:
        if self.store is None or f"{self.function} {what}" not in self._dear:
            return None
        return self.store.blob(self._key(what, given))

    def keep(self, what: str, given: Sequence[Tensor], answer: Answer, seconds: float) -> None:
        """Keep what came of a pass, if it took long enough."""
        if self.store is None:
            return
        kind = f"{self.function} {what}"
        if not self._is_worth(seconds, _size(given, answer)):
            # It has become quick: a later pass of its kind is computed and not looked for.
            self._dear.discard(kind)
        elif self.store.put_blob(key := self._key(what, given), _packed(answer)):
            if what.partition(" ")[0] == PRODUCT:
                self._keep_vector(key, what, *given)
            if kind not in self._dear:
                self.store.put(_DEAR, kind, True)
            self._dear.add(kind)

    def is_worth(self, given: Sequence[Tensor], nbytes: int, seconds: float) -> bool:
        """Whether an answer of so many bytes is kept; the first rank decides for all."""
        return self._ranks.decided(
            lambda: self.store is not None and self._is_worth(seconds, _size(given) + nbytes)
        )

    def _is_worth(self, seconds: float, nbytes: int) -> bool:
        return seconds >= self._least and nbytes <= _FREE_BYTES + _BYTES_A_SECOND * seconds

    def recall(self, what: str, name: str) -> tuple[Any, Mapping[str, int]]:
        """Return what was decided before (None if nothing was), and its cost, the first time.

        Args:
            what: was decided, e.g. which engine multiplies.
            name: of the case.
        """
        key = f"{self.function} {name}"
        if (what, key) in self._decided:
            return self._decided[what, key], {}
        found = self._ranks.decided(lambda: self.store and self.store.get(what, key))
        if found is None:
            return None, {}
        self._decided[what, key] = found["content"]
        return found["content"], found["cost"]

    def remember(self, what: str, name: str, content: Any, cost: Cost) -> None:
        """Keep a decision, ready for JSON, with its cost; a later run decides the same."""
        key = f"{self.function} {name}"
        if self.store is not None:
            self.store.put(what, key, {"content": content, "cost": cost.counts()})
        self._decided[what, key] = content

    def _key(self, what: str, given: Sequence[Tensor]) -> str:
        return digest_of_tensors(f"{self.function} {what}", given)


class Asked:
    """A pass that was asked for.

    Attributes:
        answer: numbers and tensors, where they were kept; empty if they are to be computed.
    """

    def __init__(
        self, passes: Passes | None, what: str, given: Sequence[Tensor], answer: Answer
    ) -> None:
        self.answer = answer
        self._passes, self._what, self._given = passes, what, given
        self._begun = time.perf_counter()

    def keep(self, *answer: Any) -> Answer:
        """Return what was computed since, and let it be kept."""
        if self._passes is not None:
            seconds = time.perf_counter() - self._begun
            self._passes.keep(self._what, self._given, answer, seconds)
        return answer

    def keep_whole(self, gather: Callable[[], Tensor], nbytes: int) -> None:
        """Let a tensor of so many bytes be kept, of which each rank holds a part.

        Args:
            gather: returns it whole; called on all ranks, or on none.
            nbytes: of the whole.
        """
        if self._passes is not None:
            seconds = time.perf_counter() - self._begun
            if self._passes.is_worth(self._given, nbytes, seconds):
                self._passes.keep(self._what, self._given, (gather(),), seconds)


_NOT_KEPT = Asked(None, "", (), ())


def ask(objective: Counts, what: str, theta: Tensor | None, *given: Tensor, **counts: int) -> Asked:
    """Ask for a pass over the samples; an answer is counted as if it were computed.

    Args:
        objective: what knows where its passes are kept.
        what: is computed, with all that the last bits depend on beside the function.
        theta: the point [P]; the objective's own by default.
        *given: further tensors that the answer depends on.
        **counts: what to count for an answer; see `Objective.count`.

    >>> from tempfile import mkdtemp
    >>> from flatkit.objective import Objective
    >>> data = (torch.ones(1, 1), torch.zeros(1, 1))
    >>> objective = Objective(torch.nn.Linear(1, 1), "mse", data)
    >>> ask(objective, "value", None).answer
    ()
    >>> with Store(mkdtemp() + "/a.journal", {}) as store:
    ...     objective.kept = Passes(store, "line", least_seconds=0)
    ...     loss = objective.loss()
    ...     ask(objective, "value", None).answer == objective.evaluate()
    True
    """
    if objective.kept is None:
        # The usual case; a digest of the point alone would take longer than a small pass.
        return _NOT_KEPT
    where = (objective.theta if theta is None else theta, *given)
    found = objective.kept.find(what, where)
    if found is not None:
        objective.count(**counts)
    return Asked(objective.kept, what, where, found or ())


def recall(objective: Counts, what: str, name: str) -> Any:
    """Return what was decided before, its cost counted once; None if nothing was."""
    if objective.kept is None:
        return None
    content, cost = objective.kept.recall(what, name)
    objective.count(**cost)
    return content


def digest_of_tensors(text: str, tensors: Iterable[Tensor]) -> str:
    """Return a digest of a text and the dtypes, shapes and bytes of tensors.

    By SHA-256: processors compute it faster than BLAKE2.

    >>> digest_of_tensors("", [torch.ones(2)]) == digest_of_tensors("", [torch.ones(1, 2)])
    False
    """
    digest = hashlib.sha256(text.encode())
    for tensor in chain.from_iterable(map(_dense_parts, tensors)):
        digest.update(f"\n{tensor.dtype} {list(tensor.shape)}\n".encode())
        for piece in _bytes(tensor):
            digest.update(piece)
    return digest.hexdigest()


def _dense_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the plain tensors that a sparse one is made of, as a graph's adjacency; or itself."""
    if tensor.layout is torch.sparse_coo:
        # Entries of one place, in whatever order, are added up: one adjacency has one digest.
        whole = tensor.detach().coalesce()
        return torch.tensor(whole.shape), whole.indices(), whole.values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return torch.tensor(tensor.shape), *(
            part.detach() for part in (tensor.crow_indices(), tensor.col_indices(), tensor.values())
        )
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return torch.tensor(tensor.shape), *(
            part.detach() for part in (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
        )
    return (tensor,)


def _bytes(tensor: Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in its logical order, without a copy of all of it."""
    rows = tensor.detach().reshape(1) if tensor.ndim == 0 else tensor.detach()
    # Rows that together have 16 MB: a tensor on a GPU is never copied whole.
    each = max(1, rows.nbytes // max(1, len(rows)))
    for part in rows.split(max(1, _PIECE // each)):
        yield part.cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _entries(vector: Tensor) -> list[float]:
    """Return some entries of a vector, spread over it."""
    # Spread evenly, as the first entries of two vectors may belong to a layer where both vanish.
    places = torch.linspace(0, len(vector) - 1, min(_LOOKED_AT, len(vector))).long()
    return vector.detach()[places.to(vector.device)].double().tolist()


def _pair(answer: Answer) -> tuple[Tensor, Tensor]:
    vector, product = answer
    return vector, product


def _size(*answers: Sequence[Any]) -> int:
    return sum(part.nbytes for answer in answers for part in answer if isinstance(part, Tensor))


def _packed(answer: Answer) -> bytes:
    """Return an answer as a line of JSON, with the form of each tensor, and the tensors' bytes."""
    head: list[Any] = []
    pieces: list[Any] = []
    for part in answer:
        if isinstance(part, Tensor):
            head.append([str(part.dtype).removeprefix("torch."), list(part.shape)])
            pieces += _bytes(part)
        else:
            head.append(part)
    return b"".join([json.dumps(head).encode(), b"\n", *pieces])


def _unpacked(data: bytes, device: torch.device) -> Answer:
    """Return the answer that was packed."""
    at = data.index(b"\n") + 1
    answer: list[Any] = []
    for part in json.loads(data[: at - 1]):
        if isinstance(part, list):
            dtype, shape = getattr(torch, part[0]), part[1]
            found = torch.empty(shape, dtype=dtype)
            end = at + found.nbytes
            if end > at:  # copied: what is read is not aligned, and may not be written into
                found.copy_(torch.frombuffer(bytearray(data[at:end]), dtype=dtype).view(shape))
            answer.append(found.to(device))
            at = end
        else:
            answer.append(part)
    return tuple(answer)
