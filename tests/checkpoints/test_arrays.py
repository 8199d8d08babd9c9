"""Weights that other programs saved as arrays of NumPy, and entries in lists and by number."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import flatkit
from flatkit.checkpoints.inspection import inspect
from flatkit.errors import CheckpointError, InvalidArgumentError


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def arrays() -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model().state_dict().items()}


def assert_reads(path, **options) -> None:
    other = nn.Linear(3, 2)
    flatkit.load(path, **options).load_into(other)
    assert torch.equal(other.weight, model().weight) and torch.equal(other.bias, model().bias)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickle_of_arrays_is_read(tmp_path, protocol, wrapped):
    content = {"__author__": "x", "model": arrays()} if wrapped else arrays()
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    assert_reads(tmp_path / "x.pkl")
    assert flatkit.load(tmp_path / "x.pkl").format == "pickle"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_of_arrays_is_read(tmp_path, save):
    save(tmp_path / "x.npz", **arrays(), note=np.array("text"))
    assert_reads(tmp_path / "x.npz")
    assert inspect(tmp_path / "x.npz")["format"] == "NumPy archive"


def test_a_dictionary_that_numpy_saved_as_an_object_is_read(tmp_path):
    np.save(tmp_path / "x.npy", arrays(), allow_pickle=True)  # pyright: ignore
    assert_reads(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(CheckpointError, match=r"a lone tensor of shape \[3\]"):
        flatkit.load(tmp_path / "x.npy")


def test_arrays_in_a_file_of_torch_save_are_weights_where_no_tensors_are(tmp_path):
    torch.save({"net": arrays(), "epoch": 3}, tmp_path / "x.pt")
    assert_reads(tmp_path / "x.pt")
    torch.save({"net": model().state_dict(), "curve": np.ones(5)}, tmp_path / "x.pt")
    assert flatkit.load(tmp_path / "x.pt").entry == "net"


DTYPES = ["f2", "f4", "f8", "c8", "c16", "i1", "i8", "u1", "u2", "b1", ">f4", ">i4", ">c16"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_dtype_and_order_comes_back(tmp_path, dtype, order):
    values = {
        "a": np.array(np.arange(24).reshape(2, 3, 4) % 2, dtype, order=order),  # type: ignore[call-overload]
        "b": np.array(1, dtype),
        "c": np.ones((0, 2), dtype),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(values))
    np.savez(tmp_path / "x.npz", **values)
    for file in ("x.pkl", "x.npz"):
        state = flatkit.load(tmp_path / file).state_dict
        for name, value in values.items():
            assert state[name].shape == value.shape
            np.testing.assert_array_equal(state[name].numpy(), value)


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2**27))
    with pytest.raises(CheckpointError, match="something huge"):
        flatkit.load(tmp_path / "x.npz")


def test_an_array_that_claims_more_than_it_has_is_refused(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.ones(7))
    data = stream.getvalue().replace(b"(7,)", b"(9,)")
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(CheckpointError, match="truncated"):
        flatkit.load(tmp_path / "x.npy")
    pickled = pickle.dumps({"a": np.ones(7)}, 2)
    (tmp_path / "x.pkl").write_bytes(pickled.replace(b"K\x07\x85", b"K\x09\x85"))
    with pytest.raises(CheckpointError, match="has 7 entries"):
        flatkit.load(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("content", "entry"),
    [
        (lambda state: {"models": [state, {}]}, None),
        (lambda state: {"models": [{"weight": torch.ones(1)}, state]}, "models.1"),
        (lambda state: {"models": (state, {"weight": torch.ones(1)})}, "models.0"),
        (lambda state: [{"weight": torch.ones(1)}, {"model": state}], "1.model"),
        (lambda state: {"folds": {3: {"w": torch.ones(1)}, 7: state}}, "folds.7"),
        (lambda state: {0: state, 1: {"w": torch.ones(1)}}, "0"),
        (lambda state: {"a.b": {"w": torch.ones(1)}, "c.d": state}, "c.d"),
        (lambda state: {"ema": {"w": torch.ones(1)}, "net": {"0": {"x": 1}, "s": state}}, "net.s"),
    ],
)
def test_lists_and_whole_numbers_name_entries(tmp_path, content, entry):
    torch.save(content(model().state_dict()), tmp_path / "x.pt")
    assert_reads(tmp_path / "x.pt", entry=entry)
    with pytest.raises(InvalidArgumentError, match="entry must be one of"):
        flatkit.load(tmp_path / "x.pt", entry="other")


def test_an_entry_of_nested_parts_is_read_as_one(tmp_path):
    nested = {"fc": arrays(), "head": {"out": {"bias": np.ones(2, "f4")}}}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"params": nested}))
    with pytest.raises(CheckpointError, match=r"choose one with `entry`"):
        flatkit.load(tmp_path / "x.pkl")
    state = flatkit.load(tmp_path / "x.pkl", entry="params").state_dict
    assert set(state) == {"fc.weight", "fc.bias", "head.out.bias"}


def test_the_state_of_an_optimizer_is_never_taken_for_weights(tmp_path):
    net = model()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    file = tmp_path / "x.pt"
    torch.save(optimizer.state_dict(), file)
    with pytest.raises(CheckpointError, match="holds no weights"):
        flatkit.load(file)
    torch.save({"solver": optimizer.state_dict(), "fc": model().state_dict()}, file)
    assert_reads(file)


def test_an_array_that_numpy_has_no_dtype_for_is_named(tmp_path):
    state = {**arrays(), "weight": np.zeros((2, 3), "V2")}
    np.savez(tmp_path / "x.npz", **state)
    with pytest.raises(CheckpointError, match=r"not read .*weight .*save it as float32"):
        flatkit.load(tmp_path / "x.npz").load_into(nn.Linear(3, 2))
