"""The user's own code: what it raises, with its file and line, and what a loss says of itself."""

import re
import sysconfig
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from flatkit.errors import FlatkitError, UserCodeError

REENTRANT = (
    "the model computes its activations again in a backward pass of its own, as "
    "torch.utils.checkpoint with use_reentrant=True does: there are no derivatives with respect to "
    "given weights, nor second ones; use checkpoint(..., use_reentrant=False), which computes the "
    "same numbers"
)
"""Why models with re-entrant checkpoints are refused."""

_OF_DTYPES = (
    "; flatkit computes in a copy of one dtype, float32 for 16-bit weights: let the forward pass "
    "follow it, x.to(self.layer.weight.dtype)"
)
_ADVICE = {
    "must have the same dtype": _OF_DTYPES,
    "expected scalar type": _OF_DTYPES,
    "fullgraph=True": (
        "; flatkit runs compiled functions as they were written from torch 2.6 on: give the plain "
        "function, without torch.compile, to this version"
    ),
    "Expected more than 1 value per channel when training": (
        "; the statistics of BatchNorm need two samples: choose a `chunk_size` that leaves no "
        "single one at the end"
    ),
}
"""What to do about errors of torch that flatkit's own way of calling a model brings about."""

_TORCH = Path(torch.__file__).parent
_OWN = Path(__file__).parent.parent
_PYTHON = Path(sysconfig.get_paths()["stdlib"])
_PACKAGES = ("site-packages", "dist-packages")


@contextmanager
def users_code(what: str, model: nn.Module | None = None) -> Generator[None, None, None]:
    """Turn what code of the user raises, `sys.exit` too, into an error that shows where.

    Errors of flatkit's own pass, as do interrupts.

    Args:
        what: is called, e.g. `the loss`.
        model: whose innermost failing layer is named.

    Raises:
        UserCodeError: the code raises anything.

    >>> with users_code("the loss"):
    ...     [][0]
    Traceback (most recent call last):
        ...
    flatkit.errors.UserCodeError: the loss fails ... IndexError: list index out of range
    """
    try:
        yield
    # An interrupt is not the fault of the code that it meets.
    except (FlatkitError, KeyboardInterrupt, GeneratorExit):
        raise
    # SystemExit too: a library that calls `sys.exit` would end the whole analysis without a word.
    except BaseException as error:  # the code of others may raise anything
        raise users_error(what, error, model) from error


def users_error(what: str, error: BaseException, model: nn.Module | None = None) -> UserCodeError:
    """Return the error that shows where code of the user has raised one, and on which rank.

    >>> users_error("the loss", KeyError("x"))
    UserCodeError("the loss fails: KeyError: 'x'")
    """
    advice = next((words for said, words in _ADVICE.items() if said in str(error)), "")
    from flatkit.devices.joining import current  # here, as modules below many take no more links

    ranks = current()
    here = f" on rank {ranks.rank} of {ranks.count}" if ranks.count > 1 else ""
    return UserCodeError(f"{what} fails{here}{_where(error, model)}: {_said(error)}{advice}")


def own_weights(loss: Any) -> Callable[[Any], Tensor] | None:
    """Return by what a loss says how much each sample counts, its method `weights(targets)`.

    What else goes by that name, as the weights of classes that many losses of users keep, is none.

    >>> own_weights(nn.MSELoss()) is None
    True
    """
    found: Any = getattr(loss, "weights", None)
    is_method = callable(found) and not isinstance(found, (nn.Module, type))
    return loss.weights if is_method else None


def _said(error: BaseException) -> str:
    """Return what an error says: of one from a worker of a loader, its last line."""
    text = str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    if text.startswith("Caught ") and lines:
        return lines[-1].strip()
    return f"{type(error).__name__}: {text}" if lines else type(error).__name__


def _where(error: BaseException, model: nn.Module | None) -> str:
    """Return the user's line, and the layer, as far as the traceback shows them."""
    # The frames still hold their `self`: by it the innermost module of the model is known.
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    lines = traceback.extract_tb(error.__traceback__)
    found = [line for line in lines if _foreign(line.filename)]
    # The user's own files first; if none is there, those of packages that the user installed.
    own = [line for line in found if not _installed(line.filename)] or found
    place = f" in {own[-1].filename}, line {own[-1].lineno}, {own[-1].name}" if own else ""
    code = f" ({own[-1].line})" if own and own[-1].line else ""
    worker = _in_worker(str(error)) if str(error).startswith("Caught ") else ""
    return worker or f"{place}{code}{_layer(frames, model)}"


def _in_worker(text: str) -> str:
    """Return the user's line in the traceback that a worker of a loader has sent as a text."""
    found = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', text)
    own = [line for line in found if _foreign(line[0])]
    own = [line for line in own if not _installed(line[0])] or own
    return " in {}, line {}, {}".format(*own[-1]) if own else ""


def _layer(frames: list[FrameType], model: nn.Module | None) -> str:
    if model is None:
        return ""
    names = {id(module): name for name, module in model.named_modules() if name}
    inner = [names[key] for key in map(id, _selves(frames)) if key in names]
    return f", layer {inner[-1]}" if inner else ""


def _selves(frames: list[FrameType]) -> Iterator[object]:
    for frame in frames:
        if "self" in frame.f_locals:
            yield frame.f_locals["self"]


def _foreign(name: str) -> bool:
    """Whether a file is neither torch's, flatkit's nor Python's."""
    path = Path(name)
    if name.startswith("<frozen") or path.is_relative_to(_TORCH) or path.is_relative_to(_OWN):
        return False
    return not path.is_relative_to(_PYTHON) or _installed(name)


def _installed(name: str) -> bool:
    return any(part in _PACKAGES for part in Path(name).parts)
