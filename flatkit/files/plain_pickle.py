"""Read what a pickle says without running it: plain data, and inert marks for everything else.

A pickle is a program whose instructions import and call. Here they are read one by one, containers
and numbers are built, and the few calls that files of tensors need are answered by our own
functions. Every other class or function stays a `Name`, and what calling it would give a `Record`:
nothing is imported and nothing of the file is called, whatever it names. So an object that means
nothing to us, or harm, does not cost the user what stands beside it.

Cost: a microsecond or two an instruction. A batch of CIFAR (10,000 names and labels) takes 0.1 s,
eight times as long as the unpickler of Python.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, BinaryIO

MAX_BYTES = 2**26
"""Largest pickle of a file whose tensors lie beside it, so that it holds names and numbers."""
# A checkpoint of ten thousand tensors has 300,000 instructions; the labels and names of CIFAR-100
# are some 200,000.
MAX_NODES = 2_000_000
_KEY_PARTS = 32  # of a key that is a tuple: honest ones, (module, name), have two or three
_PRUNED_LEVELS = 3  # as deep as weights are looked for
MAX_DEPTH = 100  # Python's own recursion ends at 1000, in whoever walks the content later


class MalformedPickleError(ValueError):
    """The bytes are no pickle, or one that says something impossible."""


class ForeignObjectError(ValueError):
    """The pickle names an object whose making would run code; the text is its dotted name."""


@dataclass(frozen=True)
class Name:
    """Something that a pickle would import, not imported."""

    text: str


@dataclass(eq=False)
class Record:
    """An object that a pickle would make, not made.

    Attributes:
        name: of its class or function.
        args: of the call.
        state: what would be put into it, if anything.
        items: what it would hold as a dictionary or a list of a class of its own, if anything.
    """

    name: str
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] | list[Any] | None = None


class Table(dict[Any, Any]):
    """A dictionary that a pickle gives a state beside its items, as torch does to a state dict.

    >>> table = Table({"weight": 1})
    >>> table.state = {"_metadata": {}}
    >>> table
    {'weight': 1}
    """

    state: Any = None


@dataclass(frozen=True)
class Vocabulary:
    """What a pickle may name.

    Attributes:
        calls: dotted name -> our own function, called instead.
        records: whether a dotted name becomes a `Record` when it is called.
        names: whether a further dotted name may be mentioned, but not called.
        persistent: answers a persistent id, a tuple.
    """

    calls: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    records: Callable[[str], bool] = lambda name: False
    names: Callable[[str], bool] = lambda name: False
    persistent: Callable[[Any], Any] | None = None

    def knows(self, name: str) -> bool:
        """Whether a pickle may name this."""
        return name in self.calls or self.records(name) or self.names(name)


def read_pickle(stream: BinaryIO | bytes, vocabulary: Vocabulary) -> Any:
    """Return what a pickle holds; a stream is left after its end.

    Cost: time and memory linear in its bytes, because no size that it claims is allocated.

    Raises:
        MalformedPickleError: damaged, too long or too deep, or of instructions that no file of
            tensors needs.
        ForeignObjectError: it names what `vocabulary` does not know.

    >>> import pickle
    >>> read_pickle(pickle.dumps({"epochs": [1, 2]}), Vocabulary())
    {'epochs': [1, 2]}
    >>> read_pickle(pickle.dumps(print), Vocabulary())
    Traceback (most recent call last):
    flatkit.files.plain_pickle.ForeignObjectError: builtins.print
    """
    machine = _Machine(vocabulary)
    try:
        for number, (opcode, argument, _) in enumerate(
            pickletools.genops(BytesIO(stream) if isinstance(stream, bytes) else stream)
        ):
            if number > MAX_NODES:
                raise MalformedPickleError(f"more than {MAX_NODES} instructions")
            machine.step(opcode.name, argument)
        content = machine.pop()
    except (MalformedPickleError, ForeignObjectError):
        raise
    except Exception as error:  # of bytes that mean nothing, anything may be raised
        raise MalformedPickleError(f"{type(error).__name__}: {error}") from error
    _prune(content, Budget(MAX_NODES), _PRUNED_LEVELS)
    return content


@dataclass
class Budget:
    """How many items may still be walked.

    Attributes:
        left: that number.
    """

    left: int


def check_size(content: Any, budget: Budget | None = None) -> None:
    """Refuse containers that repeat each other into something huge, endless or very deep.

    Args:
        content: of a pickle.
        budget: of this and other content together; `MAX_NODES` by default.

    Raises:
        MalformedPickleError: more items than the budget, or `MAX_DEPTH` levels.
    """
    budget = budget or Budget(MAX_NODES)
    waiting = [(content, 0)]
    while waiting:
        item, depth = waiting.pop()
        parts: list[Any] = []
        if isinstance(item, dict):
            parts = [part for pair in item.items() for part in pair]
        elif isinstance(item, (list, tuple)):
            parts = list(item)
        elif isinstance(item, Record):
            # Its arguments and state are walked by nobody, and may be an honest circle (a node that
            # knows its parent): they take no more memory than the pickle itself.
            parts = [item.items]
        budget.left -= len(parts)  # before they are walked: a bomb is paid for by who lights it
        if budget.left < 0 or depth > MAX_DEPTH:
            raise MalformedPickleError("its containers repeat each other, or are too deep")
        waiting += [(part, depth + 1) for part in parts]


def _prune(content: Any, budget: Budget, levels: int) -> None:
    """Replace what is endless or very deep by a record, where it stands beside other things.

    Raises:
        MalformedPickleError: there is nothing beside it, or it repeats itself beyond the budget.
    """
    if not isinstance(content, dict):
        return check_size(content, budget)
    for key, value in [*content.items()]:
        try:
            check_size(key, budget)
            check_size(value, budget)
        except MalformedPickleError:
            if budget.left < 0:  # a bomb, and no log that somebody has nested
                raise
            if isinstance(value, dict) and value is not content and levels:
                _prune(value, budget, levels - 1)  # of which a part may be sound
            else:
                content[key] = Record("a structure that holds itself, or is very deep", ())
    return None


def check_key(key: Any) -> None:
    """Refuse what cannot be the key of a dictionary.

    Raises:
        MalformedPickleError: it is, or holds, a list or a dictionary, or has many parts.
    """
    # Tuples that hold one another twice have a hash that takes for ever, and a deep one recurses in
    # C without a check. Honest keys have a few parts.
    waiting, count = [key], 0
    while waiting:
        part = waiting.pop()
        count += 1
        if isinstance(part, (list, dict, bytearray)) or count > _KEY_PARTS:
            raise MalformedPickleError(f"a {type(part).__name__} as a key, or one of many parts")
        if isinstance(part, tuple):
            waiting += part[:_KEY_PARTS]


class _Machine:
    """The stack, the marks and the memo of a pickle."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._words, self._stack = vocabulary, []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self._stack.pop()

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            size = _TUPLES[name]
            parts = [self.pop() for _ in range(size)][::-1]
            self._stack.append(tuple(parts))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[int(argument)] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._stack.append(self._memo[int(argument)])
        elif name not in ("PROTO", "FRAME", "STOP"):
            method = getattr(self, f"_{name.lower()}", None)
            if method is None:
                raise MalformedPickleError(f"the instruction {name}")
            method(argument)

    def _mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        parts, self._stack = self._stack, self._marks.pop()
        return parts

    def _pop(self, _: Any) -> None:
        self._stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _tuple(self, _: Any) -> None:
        parts = self._to_mark()  # first: it changes the stack
        self._stack.append(tuple(parts))

    _frozenset = _tuple  # which can be a key as well

    def _list(self, _: Any) -> None:
        parts = self._to_mark()
        self._stack.append(parts)

    def _dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _dict(self, _: Any) -> None:
        pairs = self._to_mark()
        self._stack.append({})
        self._put(pairs)

    def _append(self, _: Any) -> None:
        self._extend([self.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    _additems = _appends

    def _setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._put([key, value])

    def _setitems(self, _: Any) -> None:
        self._put(self._to_mark())

    def _extend(self, parts: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Record):
            target.items = target.items if isinstance(target.items, list) else []
            target = target.items
        if not isinstance(target, list):
            raise MalformedPickleError("items for what is no list")
        target.extend(parts)

    def _put(self, parts: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Record):  # a dictionary of a class of its own; its items are data
            target.items = target.items if isinstance(target.items, dict) else {}
            target = target.items
        if not isinstance(target, dict) or len(parts) % 2:
            raise MalformedPickleError("pairs for what is no dictionary")
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            check_key(key)
            target[key] = value

    def _global(self, argument: str) -> None:
        self._stack.append(self._named(argument.replace(" ", ".", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise MalformedPickleError("a name that is no text")
        self._stack.append(self._named(f"{module}.{name}"))

    def _inst(self, argument: str) -> None:
        args = tuple(self._to_mark())
        self._call(self._named(argument.replace(" ", ".", 1)), args)

    def _obj(self, _: Any) -> None:
        function, *args = self._to_mark()
        self._call(function, tuple(args))

    def _ext1(self, code: int) -> None:
        self._stack.append(self._named(f"copyreg.extension_{code}"))

    _ext2 = _ext4 = _ext1

    def _named(self, name: str) -> Name:
        if not self._words.knows(name):
            raise ForeignObjectError(name)
        return Name(name)

    def _reduce(self, _: Any) -> None:
        args, function = self.pop(), self.pop()
        self._call(function, args)

    def _newobj(self, argument: Any) -> None:
        self._reduce(argument)

    def _newobj_ex(self, _: Any) -> None:
        _, args, function = self.pop(), self.pop(), self.pop()  # without its keywords
        self._call(function, args)

    def _call(self, function: Any, args: Any) -> None:
        if not isinstance(function, (Name, Record)) or not isinstance(args, tuple):
            raise MalformedPickleError("a call of what is no function")
        if isinstance(function, Record):  # `getattr(Outer, "Inner")()`, as old protocols spell it
            self._stack.append(Record(function.name, args))
            return
        name = function.text
        if name in self._words.calls:
            self._stack.append(self._words.calls[name](*args))
        elif self._words.records(name):
            self._stack.append(Record(name, args))
        else:
            raise MalformedPickleError(f"a call of {name}")

    def _build(self, _: Any) -> None:
        state, target = self.pop(), self._stack[-1]
        if isinstance(target, (Record, Table)):  # kept, and given to no `__setstate__`
            target.state = state
        elif target is None or isinstance(target, (Name, str, bytes, int, float)):
            raise MalformedPickleError("a state for what is no object")

    def _binpersid(self, _: Any) -> None:
        self._persistent(self.pop())

    def _persid(self, argument: Any) -> None:
        self._persistent(argument)

    def _persistent(self, identity: Any) -> None:
        if self._words.persistent is None:
            raise MalformedPickleError("a persistent id")
        self._stack.append(self._words.persistent(identity))


_LITERALS = frozenset(
    {"INT", "LONG", "FLOAT", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "BYTEARRAY8"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,  # of anything, where a set would ask for hashes
}
_TUPLES: Mapping[str, int] = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
