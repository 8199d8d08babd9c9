"""Name the objects inside a pickle without loading it: only for the text of a refusal.

The refusal itself is torch's, whose unpickler knows a short list of harmless names.
"""

import pickletools
import zipfile
from contextlib import suppress
from typing import BinaryIO

_HARMLESS = ("collections.OrderedDict", "torch._utils.", "torch.Size", "torch.device")


def foreign_globals(stream: BinaryIO) -> list[str]:
    """Return the dotted names that a pickle or torch archive would import, tensors aside.

    Best effort: an unreadable pickle gives the names found so far.

    >>> import io, pickle
    >>> foreign_globals(io.BytesIO(pickle.dumps(print, protocol=2)))
    ['__builtin__.print']
    >>> foreign_globals(io.BytesIO(pickle.dumps(print, protocol=4)))
    ['builtins.print']
    """
    found: list[str] = []
    with suppress(
        Exception
    ):  # pickletools raises ValueError, struct.error, UnicodeDecodeError, ...
        _collect(_pickle_bytes(stream), found)
    return [name for name in found if not _harmless(name)]


def _pickle_bytes(stream: BinaryIO) -> bytes:
    if not zipfile.is_zipfile(stream):
        stream.seek(0)
        return stream.read()
    with zipfile.ZipFile(stream) as archive:
        name = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
        return archive.read(name)


def _collect(pickled: bytes, found: list[str]) -> None:
    strings: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            found.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":  # module and name are the two strings before it
            found.append(".".join(strings[-2:]))
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else ""
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            strings.append(memo.get(int(argument or 0), ""))
        elif isinstance(argument, str):
            strings.append(argument)


def _harmless(name: str) -> bool:
    storage = name.startswith("torch.") and name.endswith("Storage")
    return storage or name.startswith(_HARMLESS)
