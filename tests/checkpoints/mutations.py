"""Small checkpoints of every format, and ways to damage them, blindly and with knowledge."""

import json
import pickle
import pickletools
import shutil
import struct
import warnings
import zipfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from flatkit.checkpoints import load
from flatkit.checkpoints.inspection import inspect
from flatkit.errors import CheckpointError

FORMATS = (
    "state.pt",
    "training.pt",
    "old.pt",
    "protocol4.pt",
    "native.pt",
    "weights.safetensors",
    "shards",
    "hub",
    "distributed",
    "plain.pkl",
    "arrays.pkl",
    "arrays.npz",
    "packed.npz",
    "objects.pt",
    "deepspeed",
    "adapter",
)


def write_all(folder: Path) -> dict[str, Path]:
    """Write a small checkpoint of every format."""
    from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

    from tests.checkpoints.test_native_checkpoints import write

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = model.state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    paths = {name: folder / name for name in FORMATS}
    content = {"epoch": 1, "model": state, "optimizer": optimizer.state_dict(), "note": "λ"}
    torch.save(state, paths["state.pt"])
    torch.save(content, paths["training.pt"])
    torch.save(content, paths["old.pt"], _use_new_zipfile_serialization=False)
    torch.save(content, paths["protocol4.pt"], pickle_protocol=4)
    write(paths["native.pt"])
    save_file(state, paths["weights.safetensors"], metadata={"format": "pt"})
    for name in ("shards", "hub"):
        paths[name].mkdir()
    names = list(state)
    parts = {f"part-{i}.safetensors": names[i::2] for i in range(2)}
    for file, part in parts.items():
        save_file({n: state[n] for n in part}, paths["shards"] / file)
    index = {"metadata": {}, "weight_map": {n: file for file, part in parts.items() for n in part}}
    (paths["shards"] / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save(state, paths["hub"] / "pytorch_model.bin")
    (paths["hub"] / "config.json").write_text('{"model_type": "x", "architectures": ["X"]}')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_distributed({"model": state}, checkpoint_id=paths["distributed"])
    write_others(paths, state)
    return paths


def write_others(paths: dict[str, Path], state: dict[str, torch.Tensor]) -> None:
    """Write those of other programs."""
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    paths["plain.pkl"].write_bytes(pickle.dumps({"model": state}))
    paths["arrays.pkl"].write_bytes(pickle.dumps({"model": arrays}, 2))
    np.savez(paths["arrays.npz"], **arrays)  # pyright: ignore
    np.savez_compressed(paths["packed.npz"], **arrays)  # pyright: ignore
    other = [Namespace(a=nn.Linear(2, 2)), torch.eye(2).to_sparse(), {Path("x"): defaultdict(list)}]
    torch.save({"models": [state, other], "other": other}, paths["objects.pt"])
    step = paths["deepspeed"] / "global_step1"
    step.mkdir(parents=True)
    (paths["deepspeed"] / "latest").write_text("global_step1")
    torch.save({"module": state, "ds_version": "0.15"}, step / "mp_rank_00_model_states.pt")
    paths["adapter"].mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    (paths["adapter"] / "adapter_config.json").write_text(json.dumps(config))
    lora = {f"base_model.model.0.lora_{side}.weight": torch.ones(1, 3) for side in "AB"}
    save_file(lora, paths["adapter"] / "adapter_model.safetensors")


def attempt(path: Path) -> str:
    """Return `read` or `refused`; whatever else is raised is a fault of the reader."""
    try:
        facts = inspect(path)
        checkpoint = load(path)
    except CheckpointError as error:
        assert str(error) and len(str(error)) < 5000
        return "refused"
    read = sum(tensor.numel() for tensor in checkpoint.state_dict.values())
    assert facts["format"].startswith("flatkit") or facts["numbers"] == read
    return "read"


def damaged(path: Path, target: Path, random: Random) -> Path:
    """Write a damaged copy of a file or folder."""
    if target.is_dir():
        shutil.rmtree(target)
    if path.is_dir():
        shutil.copytree(path, target)
        victim = random.choice(sorted(item for item in target.rglob("*") if item.is_file()))
        if random.random() < 0.05:
            victim.unlink()
            return target
    else:
        shutil.copy(path, target)
        victim = target
    data = victim.read_bytes()
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        data = random.choice(MUTATIONS)(data, random)
    victim.write_bytes(data)
    return target


def flip(data: bytes, random: Random) -> bytes:
    """Flip a few bits."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 8)):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, random: Random) -> bytes:
    """Put extreme numbers in place of some bytes."""
    number = random.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 255, 65535))
    packed = struct.pack("<q", number)[: random.choice((1, 2, 4, 8))]
    at = random.randrange(len(data) + 1)
    return data[:at] + packed + data[at + len(packed) :]


def cut(data: bytes, random: Random) -> bytes:
    """Leave out a run of bytes, or all from somewhere on."""
    start, end = sorted(random.randrange(len(data) + 1) for _ in range(2))
    return data[:start] if random.random() < 0.5 else data[:start] + data[end:]


def repeat(data: bytes, random: Random) -> bytes:
    """Put a run of bytes in somewhere else as well."""
    start, end = sorted(random.randrange(len(data) + 1) for _ in range(2))
    at = random.randrange(len(data) + 1)
    return data[:at] + data[start : min(end, start + 200)] + data[at:]


def inside_archive(data: bytes, random: Random) -> bytes:
    """Damage one record of a zip archive, whose checksums are then right again."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            records = {info.filename: archive.read(info) for info in archive.infolist()}
    except Exception:
        return flip(data, random)
    names = sorted(records)
    weights = [8 if name.endswith("data.pkl") else 1 for name in names]
    name = random.choices(names, weights)[0]
    blind = (flip, overwrite, cut, repeat, instruction)
    records[name] = random.choice(blind)(records[name], random)
    kinds = (zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,)
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", random.choice(kinds)) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return stream.getvalue()


def instruction(data: bytes, random: Random) -> bytes:
    """Put another instruction in place of one of a pickle, or one more, or a number elsewhere."""
    try:
        places = [at for _, _, at in pickletools.genops(data) if at is not None]
    except Exception:
        return flip(data, random)
    at = random.choice(places)
    new = random.choice(
        (
            random.choice(pickletools.opcodes).code.encode("latin1"),
            pickle.dumps(random.choice((0, 1, -1, 2**40, 2**70)), 2)[2:-1],
            pickle.dumps(random.choice((None, True, 1.5, (), [], {}, "x", "../x")), 2)[2:-1],
            b"h" + bytes([random.randrange(80)]),
        )
    )
    return data[:at] + new + data[at + random.choice((0, 1, 1, 2)) :]


def digits(data: bytes, random: Random) -> bytes:
    """Change a character of the first part of a file, where tables and indices are."""
    at = random.randrange(min(len(data), 600) + 1)
    return (
        data[:at]
        + random.choice((b"9", b"-", b"[", b"]", b"{", b'"', b",", b"..", b"/"))
        + (data[at + 1 :])
    )


MUTATIONS: tuple[Callable[[bytes, Random], bytes], ...] = (
    flip,
    overwrite,
    cut,
    repeat,
    inside_archive,
    inside_archive,
    instruction,
    digits,
)
