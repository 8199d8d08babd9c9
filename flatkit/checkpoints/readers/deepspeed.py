"""Folders of DeepSpeed: `latest` names the step, which has one file of weights, or parts of many.

ZeRO-1 and 2 keep the whole weights in each rank's file; ZeRO-3 cuts them up among the ranks, and
only DeepSpeed's own script, which it copies beside them, puts them together again.
"""

import shlex
from pathlib import Path

from flatkit.errors import CheckpointError

LATEST = "latest"
_CONVERTER = "zero_to_fp32.py"
_WHOLE, _PARTS = "mp_rank_*_model_states.pt", "zero_pp_rank_*_model_states.pt"


def weights_file(folder: Path) -> str | None:
    """Return which file of a folder of DeepSpeed holds the weights, relative to it.

    Returns:
        The name, or None for a folder of something else.

    Raises:
        CheckpointError: the weights are cut up among ranks, with what puts them together.
    """
    step, name = folder, ""
    if (folder / LATEST).is_file():
        # A name and no more, whatever else the file may be.
        name = (folder / LATEST).read_bytes()[:200].decode("utf-8", "replace").strip()
        step = folder / name
        if not name or len(Path(name).parts) != 1 or name in (".", "..") or not step.is_dir():
            raise CheckpointError(
                f"{folder} is not whole: its file {LATEST} names {name!r}, and there is no such "
                "folder in it"
            )
    # One, unless the model is cut by columns, a file for each part.
    whole = sorted(file.name for file in step.glob(_WHOLE))
    if any(step.glob(_PARTS)):
        raise CheckpointError(_cut_up(folder if name else folder.parent, step))
    if len(whole) > 1 or any(step.glob("layer_*-model_*states.pt")):
        raise CheckpointError(
            f"{folder} is refused: its weights are cut up by layers or columns (model parallel, "
            f"{max(len(whole), 1)} files); save the whole with the program that trained it"
        )
    if not whole:
        return None
    return f"{name}/{whole[0]}" if name else whole[0]


def _cut_up(top: Path, step: Path) -> str:
    """Return the refusal of a ZeRO-3 checkpoint, with the command that converts it."""
    script, out = top / _CONVERTER, top / "weights"
    tag = [] if (top / LATEST).is_file() else ["--tag", step.name]
    command = shlex.join(["python", str(script), str(top), str(out), *tag])
    where = "" if script.is_file() else f" ({_CONVERTER} is in deepspeed/utils of DeepSpeed)"
    return (
        f"{step} is refused: its weights are cut up among the ranks of DeepSpeed ZeRO-3; join them "
        f"with {command}{where} and give {out} to flatkit"
    )
