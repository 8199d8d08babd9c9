"""Every format that users have, written by the program that owns it, read back bit for bit."""

import argparse
import json
import pathlib
import warnings
from collections import Counter, OrderedDict

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import nn

from flatkit.checkpoints import load
from flatkit.checkpoints.inspection import inspect
from flatkit.errors import CheckpointError, InvalidArgumentError
from tests.versions import UNSAVED, before

DTYPES = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32",
    "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128",
]  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def assert_holds(path, state, *, entry=None):
    checkpoint = load(path, entry=entry)
    assert checkpoint.state_dict.keys() == state.keys()
    for name, tensor in state.items():
        assert checkpoint.state_dict[name].dtype == tensor.dtype
        found = checkpoint.state_dict[name]
        if "float8" in str(tensor.dtype):  # which torch 2.4 cannot compare
            found, tensor = found.view(torch.uint8), tensor.view(torch.uint8)
        assert torch.equal(found, tensor), name
    return checkpoint


WAYS = {
    "zip": {},
    "before torch 1.6": {"_use_new_zipfile_serialization": False},
    "protocol 4": {"pickle_protocol": 4},
    "protocol 5": {"pickle_protocol": 5},
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@every_way
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".anything"])
def test_a_raw_state_dict_is_found_by_its_content(tmp_path, way, suffix):
    state = network().state_dict()
    torch.save(state, tmp_path / f"net{suffix}", **way)
    checkpoint = assert_holds(tmp_path / f"net{suffix}", state)
    assert checkpoint.format == "state dict (torch.save)"


@every_way
def test_every_dtype_and_layout_comes_back_as_torch_reads_it(tmp_path, way):
    file = tmp_path / "all.pt"
    dtypes = [name for name in DTYPES if name not in UNSAVED]
    if "_use_new_zipfile_serialization" in way:  # for which torch cannot read these itself
        dtypes = [name for name in dtypes if "float8" not in name and name[:5] != "uint1"]
        dtypes = [name for name in dtypes if name not in ("uint32", "uint64")]
    state = {name: (3 * torch.rand(2, 3)).to(getattr(torch, name)) for name in dtypes}
    base = torch.arange(24.0).reshape(4, 6)
    state |= {
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "expanded": torch.ones(1).expand(5),
        "parameter": nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "shared": base,
    }
    torch.save(state, file, **way)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the protocol
        theirs = torch.load(file, weights_only=False)  # the safe way knows protocol 2 alone
    assert_holds(file, {name: tensor.detach() for name, tensor in theirs.items()})


@every_way
def test_what_training_loops_put_beside_the_weights_is_left_alone(tmp_path, way):
    state = network().state_dict()
    optimizer = torch.optim.Adam(network().parameters())
    content = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs")),
        "best": np.float64(0.5),
        "curve": np.ones(3),
        "counts": Counter({1: 2}),
        "seen": {1, 2},
        "raw": b"bytes",
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
        "optimizer": optimizer.state_dict(),
        "rng_state": torch.get_rng_state(),
        "epoch": 3,
        "model": OrderedDict(state),
    }
    torch.save(content, tmp_path / "x.pt", **way)
    checkpoint = assert_holds(tmp_path / "x.pt", state)
    assert checkpoint.entry == "model"
    assert checkpoint.beside == {"epoch": 3}
    assert checkpoint.format == "training checkpoint (torch.save)"


@pytest.mark.parametrize("name", ["state_dict", "model", "model_state_dict", "net", "my_net"])
def test_the_weights_of_a_training_checkpoint_are_found_by_name_or_alone(tmp_path, name):
    state = network().state_dict()
    torch.save({name: state, "loss": torch.tensor(0.5), "epoch": 1}, tmp_path / "x.pt")
    assert assert_holds(tmp_path / "x.pt", state).entry == name


def test_an_average_beside_the_weights_is_named_and_can_be_chosen(tmp_path):
    state = network().state_dict()
    average = {name: tensor * 2 for name, tensor in state.items()}
    torch.save({"ema": {"weights": average}, "model": state}, tmp_path / "x.pt")
    assert assert_holds(tmp_path / "x.pt", state).others == ("ema.weights",)
    assert_holds(tmp_path / "x.pt", average, entry="ema.weights")
    with pytest.raises(InvalidArgumentError, match=r"entry must be one of ema.weights, model"):
        load(tmp_path / "x.pt", entry="emma")


def test_of_several_networks_none_is_taken_by_chance(tmp_path):
    state = network().state_dict()
    torch.save({"generator": state, "critic": state}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"generator, critic; choose one with `entry`, e.g"):
        load(tmp_path / "x.pt")
    assert_holds(tmp_path / "x.pt", state, entry="critic")


def test_safetensors_are_read(tmp_path):
    dtypes = DTYPES[:-1]
    if before(safetensors, 0, 5):  # which knows fewer
        dtypes = [name for name in dtypes if "complex" not in name and name[:5] != "uint1"]
        dtypes = [name for name in dtypes if name not in ("uint32", "uint64")]
    state = {name: (3 * torch.rand(2, 3)).to(getattr(torch, name)) for name in dtypes}
    save_file(state, tmp_path / "weights", metadata={"format": "pt"})
    assert assert_holds(tmp_path / "weights", state).format == "safetensors"


def test_safetensors_are_recognised_whatever_byte_their_length_begins_with(tmp_path):
    """It may be that of a pickle, of a zip archive or of JSON."""
    for padding in range(0, 2048, 8):
        save_file({"w": torch.ones(1)}, tmp_path / "x", metadata={"": "x" * padding})
        assert load(tmp_path / "x").state_dict["w"].tolist() == [1]
    data = (tmp_path / "x").read_bytes()
    length = int.from_bytes(data[:8], "little")
    for first in range(256):  # the library pads to multiples of eight; the format need not
        more = (first - length) % 256
        text = data[8 : 8 + length] + b" " * more
        (tmp_path / "x").write_bytes((length + more).to_bytes(8, "little") + text + data[-4:])
        assert load(tmp_path / "x").state_dict["w"].tolist() == [1]


def shards(folder, state, *, suffix="safetensors") -> None:
    names = list(state)
    parts = {f"model-{i}-of-2.{suffix}": names[i::2] for i in range(2)}
    for file, part in parts.items():
        tensors = {name: state[name] for name in part}
        save = save_file if suffix == "safetensors" else torch.save
        save(tensors, folder / file)
    stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / f"{stem}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_by_their_folder_or_their_index(tmp_path, suffix):
    state = network().state_dict()
    shards(tmp_path, state, suffix=suffix)
    checkpoint = assert_holds(tmp_path, state)
    assert "2 shards" in checkpoint.format
    assert assert_holds(next(tmp_path.glob("*.json")), state).sha256 == checkpoint.sha256


def test_a_shard_that_is_missing_or_holds_other_tensors_is_named(tmp_path):
    shards(tmp_path, network().state_dict())
    first, second = sorted(tmp_path.glob("*.safetensors"))
    first.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match=r"model-0-of-2.* holds .*which it does not"):
        load(tmp_path)
    first.unlink()
    with pytest.raises(CheckpointError, match=r"model-0-of-2.safetensors is missing"):
        load(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_folder_of_torch_distributed_is_read_without_its_pickle(tmp_path):
    from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optim": optimizer.state_dict(), "epoch": 3}
    save_distributed(content, checkpoint_id=tmp_path)
    checkpoint = assert_holds(tmp_path, model.state_dict())
    assert checkpoint.format == "torch.distributed.checkpoint"
    assert checkpoint.entry == "model"


def test_the_digest_of_a_folder_depends_on_every_file(tmp_path):
    shards(tmp_path, network().state_dict())
    before = load(tmp_path).sha256
    shards(tmp_path, {name: tensor + 1 for name, tensor in network().state_dict().items()})
    assert load(tmp_path).sha256 != before


@pytest.mark.parametrize("dtype", [name for name in DTYPES if "float" in name or "complex" in name])
def test_values_that_are_not_finite_are_counted_as_torch_counts_them(tmp_path, dtype):
    values = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), 0.0, -2.0])
    tensor = values.to(getattr(torch, dtype))
    wide = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
    torch.save({"w": tensor, "t": tensor.reshape(2, 3).T}, tmp_path / "x.pt")
    rows = inspect(tmp_path / "x.pt")["tensors"]
    assert [row["non_finite"] for row in rows] == [int((~wide.isfinite()).sum())] * 2
    assert int((~wide.isfinite()).sum()) > 0


def test_a_complex_value_counts_once_and_whole_numbers_never(tmp_path):
    nan = float("nan")
    state = {"c": torch.tensor([complex(nan, nan), complex(0, nan), 1j]), "i": torch.ones(3).int()}
    torch.save(state, tmp_path / "x.pt")
    assert [row["non_finite"] for row in inspect(tmp_path / "x.pt")["tensors"]] == [2, 0]
