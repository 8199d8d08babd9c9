"""Put stored tensors into a model, all of them, or name those that do not fit."""

from collections.abc import Mapping

from torch import Tensor, nn

from flatkit.errors import CheckpointError


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Copy the tensors of `state` into `model`, which takes their floating-point dtype.

    Args:
        model: changed in place, only if everything fits.
        state: name -> tensor.
        where: the two parties, for the message.

    Raises:
        CheckpointError: tensors that are missing, unexpected, of another shape or of mixed
            precision, each named.

    >>> import torch
    >>> load_state(nn.Linear(2, 1), {"weight": torch.ones(1, 3)}, where="a.pt and Linear")
    Traceback (most recent call last):
    flatkit.errors.CheckpointError: a.pt and Linear do not fit: missing bias;
    weight has shape [1, 3] in the file and [1, 2] in the model
    """
    own = model.state_dict()
    misfits = _list("missing", own.keys() - state.keys())
    misfits += _list("unexpected", state.keys() - own.keys())
    misfits += [
        f"{name} has shape {list(state[name].shape)} in the file and {list(own[name].shape)} "
        "in the model"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    precisions = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(precisions) > 1:
        misfits.append(f"mixed dtypes {', '.join(sorted(map(str, precisions)))}")
    if misfits:
        raise CheckpointError(f"{where} do not fit: {'; '.join(misfits)}")
    for dtype in precisions:
        model.to(dtype)
    model.load_state_dict(state)


def _list(what: str, names: set[str]) -> list[str]:
    return [f"{what} {', '.join(sorted(names))}"] if names else []
