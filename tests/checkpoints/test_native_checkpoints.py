import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from flatkit import checkpoints
from flatkit.checkpoints import Checkpoint
from flatkit.data import DATASETS
from flatkit.errors import CheckpointError, InvalidArgumentError, OutputError
from flatkit.models import MODELS
from flatkit.objective.losses import CrossEntropy

MODEL_KWARGS = {"in_shape": [1, 4, 4], "classes": 3, "width": 2}
DATA_KWARGS = {"samples": 30, "classes": 3, "features": 5}


def write(path: Path, **changes) -> Path:
    blobs = DATASETS.build("gaussians", **DATA_KWARGS)
    kwargs = MODELS.complete("mlp", in_shape=blobs.in_shape, classes=3, hidden=[4])
    content = {
        "model": {"name": "mlp", "kwargs": kwargs},
        "data": {"name": "gaussians", "kwargs": DATA_KWARGS, "sha256": blobs.sha256()},
        "loss": CrossEntropy(label_smoothing=0.1).spec(),
        "state_dict": MODELS.build("mlp", **kwargs).state_dict(),
        "epoch": 2,
        "config": {"optimizer": "gam", "rho": 0.2, "momentum": None, "model": "mlp"},
        "history": [{"epoch": 1}, {"epoch": 2}],
        "training_state": {"gradients": 8},
    }
    return checkpoints.save(path, **{**content, **changes})


def rewrite(path: Path, **changes) -> Path:
    """Change entries behind the back of `save`, which would refuse some of them."""
    content = torch.load(path, weights_only=True)
    content.update(changes)
    torch.save({key: value for key, value in content.items() if value is not ...}, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


class Whole:
    """Stands for a model that was pickled whole."""


class Evil:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))


def test_a_checkpoint_round_trips_bit_for_bit(tmp_path):
    file = write(tmp_path / "ckpt.pt")
    checkpoint = checkpoints.load(file)
    stored = torch.load(file, weights_only=True)["state_dict"]
    model = checkpoint.build_model()
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored[name])
    assert checkpoint.build_loss() == CrossEntropy(label_smoothing=0.1)
    assert checkpoint.epoch == 2
    assert checkpoint.training_state == {"gradients": 8}
    assert checkpoint.history == [{"epoch": 1}, {"epoch": 2}]


def test_a_task_is_rebuilt_from_names_alone(tmp_path):
    checkpoint = checkpoints.load(write(tmp_path / "run" / "ckpt.pt"))
    task = checkpoint.task()
    assert task.name == "run"
    assert len(task.data[1]) == 24
    assert task.test_data is not None
    assert len(task.test_data[1]) == 6
    assert task.loss == checkpoint.build_loss()
    assert task.model(task.data[0]).shape == (24, 3)


def test_batchnorm_statistics_come_back_with_the_weights(tmp_path):
    model = MODELS.build("cnn", **MODEL_KWARGS)
    model(torch.randn(6, 1, 4, 4))
    spec = {"name": "cnn", "kwargs": MODEL_KWARGS}
    file = write(tmp_path / "ckpt.pt", model=spec, state_dict=model.state_dict())
    rebuilt = checkpoints.load(file).build_model()
    x = torch.randn(5, 1, 4, 4)
    assert torch.equal(rebuilt(x), model.eval()(x))


def test_float64_weights_stay_float64(tmp_path):
    checkpoint = checkpoints.load(write(tmp_path / "ckpt.pt"))
    state = {name: tensor.double() / 3 for name, tensor in checkpoint.state_dict.items()}
    model = checkpoints.load(write(tmp_path / "b.pt", state_dict=state)).build_model()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_rebuilding_a_model_leaves_the_random_state_alone(tmp_path):
    checkpoint = checkpoints.load(write(tmp_path / "ckpt.pt"))
    before = torch.get_rng_state()
    checkpoint.build_model()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_digest_is_that_of_the_file_and_the_path_is_as_given(tmp_path, monkeypatch):
    import hashlib

    file = write(tmp_path / "gam" / "ckpt.pt")
    monkeypatch.chdir(file.parent)
    checkpoint = checkpoints.load("ckpt.pt")
    assert checkpoint.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert checkpoint.path == "ckpt.pt"
    assert checkpoint.name == "gam"
    assert checkpoints.load(write(tmp_path / "gam" / "epoch-0010.pt")).name == "gam/epoch-0010"


def test_a_description_is_ready_for_json(tmp_path):
    described = checkpoints.load(write(tmp_path / "ckpt.pt")).describe()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["optimizer"] == "gam"
    assert described["training"] == {"optimizer": "gam", "rho": 0.2}
    assert described["format"] == "flatkit 1"


def test_the_same_content_gives_the_same_bytes(tmp_path):
    torch.manual_seed(0)
    first = write(tmp_path / "a.pt")
    torch.manual_seed(0)
    assert write(tmp_path / "b.pt").read_bytes() == first.read_bytes()


# Files that are no checkpoints


def test_a_missing_file_a_folder_an_empty_file_and_a_pipe_say_so(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.pt")
    assert "is a folder" in refusal(tmp_path)
    write(tmp_path / "ckpt.pt")
    assert f"did you mean {tmp_path / 'ckpt.pt'}" in refusal(tmp_path)
    (tmp_path / "empty.pt").touch()
    assert "is empty" in refusal(tmp_path / "empty.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    assert "not a regular file" in refusal(tmp_path / "pipe.pt")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_recognised_wherever_it_ends(tmp_path, part):
    file = write(tmp_path / "ckpt.pt")
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    assert "truncated or damaged" in refusal(file)


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    file = write(tmp_path / "ckpt.pt")
    weight = torch.load(file, weights_only=True)["state_dict"]["hidden1.weight"]
    content = bytearray(file.read_bytes())
    content[content.index(weight.numpy().tobytes()) + 3] ^= 1
    file.write_bytes(content)
    torch.load(file, weights_only=True)  # torch itself does not notice
    assert "checksum" in refusal(file)


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"hello, world", "it starts with b'hello, w'"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of git-lfs"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (b"BZh91AY&SY", "compressed with bzip2; unpack it"),
        (b"\xfd7zXZ\x00\x00\x04", "compressed with xz; unpack it"),
        (b"\x08\x07\x12\x07pytorch\x1a\x051.13", "an ONNX model, which holds a graph"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(40), "TensorFlow Lite"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b'{"model_type": "gpt2"}', "JSON, but no index of shards"),
        (bytes(257) + b"ustar", "a tar file"),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path, start, what):
    file = tmp_path / "x.pt"
    file.write_bytes(start)
    assert what in refusal(file)


def test_zip_archives_and_pickles_of_others_are_named(tmp_path):
    file = tmp_path / "x.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "a")
    assert "zip archive, but not one of torch.save" in refusal(file)
    file.write_bytes(pickle.dumps({"a": 1}, protocol=4))
    assert "a pickle that torch did not write" in refusal(file)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, container, protocol):
    file, trace = tmp_path / "evil.pt", tmp_path / "trace"
    content = {"flatkit_checkpoint": 1, "state_dict": Evil(trace)}
    if container == "torch":
        torch.save(content, file, pickle_protocol=protocol)
    else:
        file.write_bytes(pickle.dumps(content, protocol=protocol))
    message = refusal(file)
    assert not trace.exists()
    assert "refused: it contains whole objects such as posix.mkdir" in message
    assert "save a state_dict instead" in message
    assert "torch.save(x.state_dict(), 'weights.pt')" in message  # how to convert it
    torch.load(file, weights_only=False) if container == "torch" else pickle.loads(
        file.read_bytes()
    )
    assert trace.exists()  # it was malicious indeed


def test_a_variable_that_makes_torch_trust_files_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Evil(tmp_path / "trace"), tmp_path / "evil.pt")
    assert "refused" in refusal(tmp_path / "evil.pt")
    assert not (tmp_path / "trace").exists()


def test_a_model_that_was_pickled_whole_is_refused_by_name(tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "model.pt")
    assert "torch.nn.modules.container.Sequential" in refusal(tmp_path / "model.pt")
    torch.save({"model": Whole()}, tmp_path / "model.pt")
    assert "test_native_checkpoints.Whole" in refusal(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    assert "TorchScript" in refusal(tmp_path / "script.pt")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"state_dict": {}, "pytorch-lightning_version": "2"}, "a dictionary of state_dict"),
        ({"a": 1}, "a dictionary of a"),
        ({}, "nothing"),
        (torch.ones(2), "a lone tensor of shape [2]"),
        ([1, 2], "a lone list"),
        ({"optimizer": {"momentum": torch.ones(2)}}, "a dictionary of optimizer"),
    ],
)
def test_files_without_weights_are_described(tmp_path, content, kind):
    torch.save(content, tmp_path / "x.pt")
    assert f"holds no weights: it is {kind}" in refusal(tmp_path / "x.pt")


# Checkpoints that are malformed


@pytest.mark.parametrize("number", [0, -1, "1", 1.0, True, None])
def test_a_format_that_is_no_number_above_zero_is_malformed(tmp_path, number):
    file = rewrite(write(tmp_path / "ckpt.pt"), flatkit_checkpoint=number)
    assert f"format number is {number!r}" in refusal(file)


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    file = rewrite(write(tmp_path / "ckpt.pt"), flatkit_checkpoint=3, flatkit="9.0")
    message = refusal(file)
    assert "format 3, written by flatkit 9.0" in message
    assert "upgrade" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_dict": ..., "epoch": ...}, "state_dict, epoch missing"),
        ({"model": "mlp"}, "model must be a dict, got str"),
        ({"model": {"name": "mlp"}}, "model is malformed: kwargs missing"),
        ({"data": {"name": "digits", "kwargs": {}}}, "data is malformed: sha256 missing"),
        ({"state_dict": {"w": [1.0]}}, "state_dict['w'] is not a tensor"),
        ({"history": [1]}, "a row of its history"),
    ],
)
def test_missing_and_malformed_entries_are_named(tmp_path, changes, message):
    assert message in refusal(rewrite(write(tmp_path / "ckpt.pt"), **changes))


def broken(tmp_path: Path, **changes) -> Checkpoint:
    return checkpoints.load(write(tmp_path / "ckpt.pt", **changes))


def test_unknown_models_data_and_losses_are_named_when_they_are_built(tmp_path):
    checkpoint = broken(tmp_path, model={"name": "resnet", "kwargs": {}})
    with pytest.raises(CheckpointError, match=r"model must be one of cnn, mlp, .*, got 'resnet'"):
        checkpoint.build_model()
    checkpoint = broken(tmp_path, data={"name": "imagenet", "kwargs": {}, "sha256": ""})
    with pytest.raises(CheckpointError, match="data must be one of"):
        checkpoint.build_data()
    checkpoint = broken(tmp_path, loss={"name": "mse", "kwargs": {"power": 3}})
    with pytest.raises(CheckpointError, match="loss mse has no argument 'power'"):
        checkpoint.build_loss()


def test_tensors_that_do_not_fit_the_model_are_all_named(tmp_path):
    state = dict(checkpoints.load(write(tmp_path / "a.pt")).state_dict)
    del state["output.bias"]
    state["extra"] = torch.ones(1)
    state["hidden1.weight"] = torch.ones(4, 6)
    checkpoint = broken(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.build_model()
    rows = [line.split() for line in str(caught.value).splitlines()]
    assert rows[0][-7:] == ["1", "missing,", "1", "unexpected,", "1", "of", "another", "shape"][-7:]
    assert ["missing", "output.bias", "[3]", "-"] in rows
    assert ["unexpected", "extra", "[1]", "-"] in rows
    assert " ".join(rows[3]).startswith("shape hidden1.weight [4, 6] in the file, [4, 5] in the m")


def test_of_tensors_of_mixed_precision_the_widest_holds_all_exactly(tmp_path):
    state = dict(checkpoints.load(write(tmp_path / "a.pt")).state_dict)
    state["output.bias"] = state["output.bias"].double() / 3
    state["hidden1.bias"] = state["hidden1.bias"].bfloat16()
    built = broken(tmp_path, state_dict=state).build_model().state_dict()
    for name, tensor in state.items():
        assert built[name].dtype == torch.float64
        assert torch.equal(built[name], tensor.double())


def test_data_that_rebuild_differently_are_refused(tmp_path):
    spec = {"name": "gaussians", "kwargs": DATA_KWARGS, "sha256": "0" * 64}
    with pytest.raises(CheckpointError, match=r"trained on other data.*sha256 000000000000"):
        broken(tmp_path, data=spec).build_data()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_load_but_are_not_analyzed(tmp_path, value):
    state = dict(checkpoints.load(write(tmp_path / "a.pt")).state_dict)
    state["output.bias"] = torch.tensor([1.0, value, value])
    checkpoint = broken(tmp_path, state_dict=state)
    assert checkpoint.non_finite() == {"output.bias": 2}
    with pytest.raises(CheckpointError, match=r"values of output.bias that are NaN or infinite: 2"):
        checkpoint.task()


def test_what_could_not_be_loaded_is_not_written(tmp_path):
    with pytest.raises(InvalidArgumentError, match="config, model must be numbers"):
        write(tmp_path / "a.pt", config={"model": nn.Linear(2, 2)})
    with pytest.raises(CheckpointError, match="state_dict"):
        write(tmp_path / "a.pt", state_dict={"w": 1.0})
    assert not (tmp_path / "a.pt").exists()


def test_an_output_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make the folder"):
        write(tmp_path / "file" / "ckpt.pt")
