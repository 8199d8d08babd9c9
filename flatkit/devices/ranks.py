"""The processes that share a job: who is who, sums over all of them, what one decides for all.

`torchrun` starts them, torch.distributed connects them. Each does the same work over its own part
of the samples, and every number that a decision rests on is added up over all, so that all decide
alike. What a clock or the free memory decides, the first decides for all.
"""

import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed

from flatkit.errors import FlatkitError, InvalidArgumentError, LostRankError, RankError

if TYPE_CHECKING:  # a link less in the chain of imports
    from flatkit.devices.words import Words

T = TypeVar("T")
_BYTES = 8
"""Of a float64 and an int64."""
_PIECE = 2**20
"""Numbers of a part that go to another rank at once: beside a vector little is held."""
POLL = 0.02  # seconds between looks whether another rank is done
_FAILED, _NOTHING = -2, -1


class Ranks:
    """Processes that do the same work together; by default a single one.

    Args:
        rank: of this process, from 0.
        count: of all.
        group: of torch.distributed, that moves tensors of the CPU and of the device.
        store: of torch.distributed, in which they leave words for each other.
        words: `Words` of this rank in the same store.

    Attributes:
        words: those.
        sent: bytes that this rank sent, by the algorithm that sends the fewest: a sum over N ranks
            sends 2 (N - 1)/N of its bytes, and half as much where each rank gets its part alone.

    >>> Ranks().part(5), Ranks(1, 2).part(5)
    (slice(0, 5, None), slice(3, 5, None))
    """

    def __init__(
        self, rank: int = 0, count: int = 1, group: Any = None, store: Any = None, words: Any = None
    ) -> None:
        self.rank, self.count, self._group, self._store = rank, count, group, store
        self.words: Words = words
        self._passes = self._handed_out = 0
        self.sent = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the one that decides, prints and writes."""
        return self.rank == 0

    def part(self, length: int) -> slice:
        """Return which of so many things are those of this rank; the parts differ by one at most.

        The first rank has the largest.
        """
        each, more = divmod(length, self.count)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def largest_part(self, length: int) -> int:
        """Return how many of so many things the first rank has, which has the most.

        >>> Ranks(1, 2).largest_part(5)
        3
        """
        return -(-length // self.count)

    def check_device(self, device: torch.device) -> None:
        """Refuse a device whose tensors do not go from rank to rank.

        Raises:
            InvalidArgumentError: the group has no backend for it.
        """
        if self.count == 1 or device.type == "cpu":
            return
        backends = distributed.get_backend_config(self._group)
        if f"{device.type}:nccl" not in backends.split(","):
            raise InvalidArgumentError(
                f"device {device.type} cannot be shared by ranks over {backends}; choose cpu, or "
                "cuda where torch has nccl"
            )

    @contextmanager
    def adding(self, total: Tensor | None = None, sums: Tensor | None = None) -> Generator[None]:
        """Add up, in place and over all ranks, what the block puts into tensors; one all-reduce.

        It holds the numbers of `total`, and 8 (K + 2) more for each rank: each of these float64
        stands in a place of its own, as its bytes, so that no digit of it is lost in the dtype of
        `total`, and all ranks add them up in the same order. Where the block of one rank raises,
        all of them do, after the all-reduce: nobody waits for a rank that has failed.

        Args:
            total: any shape and real dtype, the same on all ranks.
            sums: a few numbers [K], float64, on the CPU.

        Raises:
            FlatkitError: what the block of another rank raised.
            RankError: another rank failed otherwise, or does other work.
            LostRankError: a rank is gone.
        """
        if self.count == 1:
            yield
            return
        self._passes += 1
        try:
            yield
        except Exception as error:
            self._leave_word(error)
            self._add_up(total, sums, failed=True)
            raise
        self._add_up(total, sums, failed=False)

    @contextmanager
    def adding_parts(self, total: Tensor, part: Tensor) -> Generator[None]:
        """Add up over all ranks what the block puts into a vector; each gets its part alone.

        Half of the bytes of `adding`, piece by piece. All ranks add up in the same order.

        Args:
            total: [N L], the parts of all ranks one after the other.
            part: [L], takes the sum.

        Raises:
            FlatkitError: what the block of another rank raised.
            RankError: another rank failed otherwise, or does other work.
            LostRankError: a rank is gone.
        """
        self._passes += 1
        try:
            yield
        except Exception as error:
            self._leave_word(error)
            self._scatter(torch.zeros_like(total), part, failed=True)
            raise
        self._scatter(total, part, failed=False)

    def joined_parts(self, part: Tensor) -> Tensor:
        """Return the parts [L] of all ranks, one after the other [N L].

        >>> Ranks().joined_parts(torch.ones(1))
        tensor([1.])
        """
        if self.count == 1:
            return part
        found = part.new_empty(self.count * len(part))
        self.sent += (self.count - 1) * part.nbytes
        own = part.contiguous()
        self._connected(lambda: _gather(found, own, group=self._group))
        return found

    def total(self, numbers: Tensor) -> Tensor:
        """Return the sums of a few numbers over all ranks, the same bits on each.

        Args:
            numbers: any shape, float64 on the CPU.

        >>> Ranks().total(torch.ones(1))
        tensor([1.])
        """
        if self.count > 1:
            numbers = numbers.contiguous().clone()
            self._all_reduce(numbers)
        return numbers

    def from_first(self, work: Callable[[], bytes | None]) -> bytes | None:
        """Return what work gives on the first rank; it is done there alone.

        Raises:
            FlatkitError: what it raised there.
            LostRankError: a rank is gone.
        """
        if self.count == 1:
            return work()
        self._passes += 1
        head, data = torch.zeros(1, dtype=torch.int64), None
        if self.is_first:
            try:
                data = work()
            except Exception as error:
                self._leave_word(error)
                self._broadcast(head.fill_(_FAILED))
                raise
            head.fill_(_NOTHING if data is None else len(data))
        self._broadcast(head)
        if int(head) == _FAILED:
            raise self._word_of(0)
        if int(head) == _NOTHING:
            return None
        payload = torch.zeros(int(head), dtype=torch.uint8)
        if data:
            payload.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        self._broadcast(payload)
        return payload.numpy().tobytes()

    def decided(self, work: Callable[[], Any]) -> Any:
        """Return what work gives on the first rank, that JSON can hold; it is done there alone.

        >>> Ranks().decided(lambda: 3)
        3
        """
        if self.count == 1:
            return work()
        found = self.from_first(lambda: json.dumps(work()).encode())
        assert found is not None
        return json.loads(found)

    def hand_out(self, count: int, work: Callable[[int], Any]) -> Iterator[Any]:
        """Yield what work gives for each number below a count, in order, on all ranks.

        Each is done once, by whichever rank is free; what comes back, JSON must hold.

        Raises:
            FlatkitError: what work raised, on this rank or another.

        >>> list(Ranks().hand_out(3, lambda number: number**2))
        [0, 1, 4]
        """
        if self.count == 1:
            yield from map(work, range(count))
            return
        self._handed_out += 1
        name, taken = f"work/{self._handed_out}", 0
        for number in range(count):
            while not self._there(key := f"{name}/{number}"):
                if taken >= count:  # another rank is at it, perhaps for hours: `get` would give up
                    time.sleep(POLL)
                    continue
                taken = self._store.add(f"{name}/next", 1) - 1
                if taken < count:
                    self._do(f"{name}/{taken}", work, taken)
            said = json.loads(self._store.get(key))
            if "failed" in said:
                raise self.words.raised(*said["failed"])
            yield said["done"]

    def gathered(self, text: str) -> list[str]:
        """Return the texts of all ranks.

        >>> Ranks().gathered("here")
        ['here']
        """
        if self.count == 1:
            return [text]
        own = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.count, dtype=torch.int64)
        sizes[self.rank] = len(own)
        self._all_reduce(sizes)
        rows = torch.zeros(self.count, int(sizes.max()), dtype=torch.uint8)
        rows[self.rank, : len(own)] = own
        self._all_reduce(rows)
        found = zip(rows, sizes.tolist(), strict=True)
        return [row[:size].numpy().tobytes().decode() for row, size in found]

    def check_alike(self, what: dict[str, Any]) -> None:
        """Refuse ranks that are to do different work.

        Args:
            what: in words -> what must be the same, ready for JSON.

        Raises:
            RankError: on one rank something differs; it is named.
        """
        if self.count == 1:
            return
        texts = [json.loads(text) for text in self.gathered(json.dumps(what))]
        for rank, other in enumerate(texts):
            differing = [name for name in texts[0] if other.get(name) != texts[0][name]]
            if differing:
                raise RankError(
                    f"rank {rank} of {self.count} differs from rank 0 in {', '.join(differing)}; "
                    "start the same command, with the same files and packages, on all"
                )

    def hang_up(self) -> None:
        """Let the connection close, so that who waits for this rank hears of it at once.

        It closes with the last reference to its group.
        """
        self._group = None

    def _add_up(self, total: Tensor | None, sums: Tensor | None, *, failed: bool) -> None:
        kind = torch.zeros(0, dtype=torch.float64) if total is None else total.detach().flatten()
        few = [float(failed), float(self._passes), *([] if sums is None else sums.tolist())]
        own = torch.tensor(few, dtype=torch.float64)
        places = torch.zeros(self.count, _BYTES * len(few), dtype=kind.dtype)
        places[self.rank] = own.view(torch.uint8).to(kind.dtype)
        buffer = torch.cat([torch.zeros_like(kind) if failed else kind, places.flatten().to(kind)])
        self._all_reduce(buffer)
        told = buffer[len(kind) :].cpu().view(self.count, -1).to(torch.uint8)
        rows = told.contiguous().view(torch.float64)  # [ranks, K + 2]
        if not failed:
            self._check(rows[:, 0].tolist(), rows[:, 1].tolist())
        if total is not None:
            total.copy_(buffer[: len(kind)].view_as(total))
        if sums is not None:
            sums.copy_(rows[:, 2:].sum(0))

    def _scatter(self, total: Tensor, part: Tensor, *, failed: bool) -> None:
        rows = total.view(self.count, -1)  # [N, L]
        told = torch.tensor([float(failed), float(self._passes)], dtype=torch.float64)
        head = told.view(torch.uint8).to(rows).expand(self.count, -1)
        for begin in range(0, rows.shape[1], _PIECE):
            piece = rows[:, begin : begin + _PIECE]
            given = piece.contiguous() if begin else torch.cat([head, piece], dim=1)
            taken = self._exchanged(given)
            if begin == 0:
                said, taken = taken.split([head.shape[1], piece.shape[1]], dim=1)
                found = said.to("cpu", torch.uint8).contiguous().view(torch.float64)
                if failed:
                    return
                self._check(found[:, 0].tolist(), found[:, 1].tolist())
            own = part[begin : begin + _PIECE].copy_(taken[0])
            for other in taken[1:]:
                own += other

    def _exchanged(self, rows: Tensor) -> Tensor:
        """Return the rows that the ranks have for this one, each of which has one for each."""
        taken = torch.empty_like(rows)
        self.sent += rows.nbytes * (self.count - 1) // self.count
        self._connected(lambda: distributed.all_to_all_single(taken, rows, group=self._group))
        return taken

    def _check(self, failed: list[float], passes: list[float]) -> None:
        if any(failed):
            raise self._word_of(failed.index(1.0))
        if len(set(passes)) > 1:
            raise RankError(f"the ranks do different work: they are at the passes {passes}")

    def _there(self, key: str) -> bool:
        """Whether another rank has set a key; no rank is gone that still could."""
        there = self._connected(lambda: self._store.check([key]))
        if not there and self.words.lost is not None:
            raise LostRankError(self.words.lost)
        return there

    def _do(self, key: str, work: Callable[[int], Any], number: int) -> None:
        try:
            said = {"done": work(number)}
        except Exception as error:
            self._store.set(key, json.dumps({"failed": self.words.of(error)}))
            raise
        self._store.set(key, json.dumps(said))

    def _leave_word(self, error: Exception) -> None:
        self._store.set(f"word/{self._passes}/{self.rank}", json.dumps(self.words.of(error)))

    def _word_of(self, rank: int) -> FlatkitError:
        """Return what another rank raised in this pass."""
        return self.words.raised(*json.loads(self._store.get(f"word/{self._passes}/{rank}")))

    def _all_reduce(self, tensor: Tensor) -> None:
        self.sent += 2 * tensor.nbytes * (self.count - 1) // self.count
        self._connected(lambda: distributed.all_reduce(tensor, group=self._group))

    def _broadcast(self, tensor: Tensor) -> None:
        self.sent += tensor.nbytes if self.is_first else 0
        self._connected(lambda: distributed.broadcast(tensor, 0, group=self._group))

    def _connected(self, talk: Callable[[], T]) -> T:
        if self._group is None:
            raise InvalidArgumentError(
                "the ranks have parted; measure inside of the `with joined()` where this was made"
            )
        try:
            return talk()
        except RuntimeError as error:  # the only sign of a connection that broke
            raise LostRankError(self.words.missing()) from error


ALONE = Ranks()
_gather: Any = getattr(distributed, "all_gather_single", None)
_gather = _gather or getattr(distributed, "all_gather_into_tensor", None)
"""By the newer name, where there is one."""
