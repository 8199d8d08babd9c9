"""Devices by name, and torch without the contexts that a caller holds around a call."""

import ctypes
import os
import sys
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch
from torch.overrides import _get_current_function_mode_stack  # pyright: ignore
from torch.utils._device import DeviceContext

from flatkit.checks import check_choice
from flatkit.devices.precision import full_float32, is_full
from flatkit.errors import InvalidArgumentError

_EAGER = threading.local()
"""Whether this thread runs compiled functions as they were written."""
_LARGE = 2**20
"""Parameters from which on memory is given back: to ask for it takes a millisecond."""


def resolve_device(name: str | None) -> torch.device:
    """Return the device that a setting names; `auto` takes cuda, then mps, then cpu.

    Without a name it is a GPU of CUDA if there is one, else the cpu: mps has no float64, against
    which products are held. CUDA is set up here, so that whoever puts random states back later
    knows those of its generators.

    Raises:
        InvalidArgumentError: no such name, or this machine does not offer it.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    offered = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    names = ("auto", *offered)
    if name is None:
        name = "cuda" if offered["cuda"] else "cpu"
    if name == "gpu":  # whose nearest spelling is cpu
        allowed = ", ".join(sorted(names))
        raise InvalidArgumentError(
            f"device must be one of {allowed}, got 'gpu'; did you mean 'cuda'?"
        )
    check_choice("device", name, names)
    if name == "auto":
        name = next(device for device, present in offered.items() if present)
    if not offered[name]:
        present = ", ".join(device for device, here in offered.items() if here)
        raise InvalidArgumentError(f"device {name} is not available here; choose auto or {present}")
    if name == "cuda":
        torch.cuda.init()
    return torch.device(name)


def is_ordinary() -> bool:
    """Whether no context is around that `ordinary_torch` would leave without effect.

    >>> with ordinary_torch():
    ...     is_ordinary()
    True
    """
    around = torch.is_inference_mode_enabled() or _get_current_function_mode_stack()
    around = around or _may_be_compiled()
    narrow = any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
    return not around and not narrow and is_full()


@contextmanager
def ordinary_torch() -> Generator[None]:
    """Leave the caller's autocast, inference mode and default device without effect inside.

    A measurement is the same wherever it is called: in a validation loop under `inference_mode`,
    under autocast, where tensors are made on another device by default, where TF32 is allowed.
    Functions that torch.compile made run as they were written: compiled ones have no second
    derivatives. Whether gradients are recorded is left as it is. It decorates functions as well.

    >>> with torch.autocast("cpu", torch.bfloat16), ordinary_torch():
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    if is_ordinary():
        yield
        return
    with ExitStack() as stack:
        if _may_be_compiled():
            stack.enter_context(_eager())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        if not is_full():
            stack.enter_context(full_float32())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # Until torch 2.5 `get_default_device` does not know those of `with torch.device(...)`.
        modes = _get_current_function_mode_stack()
        devices = [mode.device for mode in modes if isinstance(mode, DeviceContext)]
        if devices and devices[-1].type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def _may_be_compiled() -> bool:
    """Whether compiled functions would run as such here; torch 2.6 can run them as written."""
    known = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")
    return known and not getattr(_EAGER, "entered", False)


@contextmanager
def _eager() -> Generator[None]:
    _EAGER.entered = True
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _EAGER.entered = False


def give_back(theta: torch.Tensor) -> None:
    """Let the allocator give freed memory back to the system, where it can be asked to (glibc).

    After passing work of a large network, whose memory it would keep beside that of what follows.

    Args:
        theta: the parameters of the network.

    >>> give_back(torch.zeros(2**20))
    """
    if sys.platform == "linux" and theta.numel() >= _LARGE:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes; 0 if it cannot be told.

    >>> free_bytes(torch.device("meta"))
    0
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0
