"""CIFAR, MNIST and Fashion-MNIST from folders, whole and damaged."""

import hashlib
import io
import os
import pickle
import pickletools
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from flatkit.data import DATASETS
from flatkit.data.cifar import read_batch
from flatkit.errors import DataError, InvalidArgumentError
from tests.data.local_folders import (
    cifar_binary,
    cifar_python,
    idx_folder,
    python2_pickle,
    random_images,
)

MEAN = np.array([0.4914, 0.4822, 0.4465], dtype=np.float32).reshape(1, 3, 1, 1)
DEVIATION = np.array([0.2470, 0.2435, 0.2616], dtype=np.float32).reshape(1, 3, 1, 1)


def build(name: str, root: Path, **kwargs):
    return DATASETS.build(name, root=str(root), **{"verify": False, **kwargs})


@pytest.mark.parametrize("write", [cifar_python, cifar_binary])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_read_from_both_layouts_with_the_pixels_and_labels_written(
    tmp_path, write, classes
):
    folder = write(tmp_path, classes)
    data = build(f"cifar{classes}", tmp_path, standardize=False)
    files = 5 if classes == 10 else 1
    parts = [random_images(max(20, classes), (3072,), classes, seed) for seed in range(files + 1)]
    expected = np.concatenate([pixels for pixels, _ in parts[:files]]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal((data.train.inputs * 255).round().numpy(), expected)
    labels = [label for _, part in parts[:files] for label in part]
    assert data.train.targets.tolist() == labels
    assert data.test.targets.tolist() == parts[files][1]
    assert data.classes == classes
    inside = DATASETS.build(f"cifar{classes}", root=str(folder), verify=False, standardize=False)
    assert inside.sha256() == data.sha256()


def test_the_two_layouts_give_the_same_tensors(tmp_path):
    cifar_python(tmp_path / "py")
    cifar_binary(tmp_path / "bin")
    one, two = build("cifar10", tmp_path / "py"), build("cifar10", tmp_path / "bin")
    assert one.sha256() == two.sha256()


def test_channels_are_standardised_with_the_published_constants(tmp_path):
    cifar_binary(tmp_path)
    pixels, _ = random_images(20, (3072,), 10, 0)
    expected = (pixels.reshape(-1, 3, 32, 32).astype(np.float32) / 255 - MEAN) / DEVIATION
    found = build("cifar10", tmp_path).train.inputs[:20].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_shrunken_images_are_means_over_blocks(tmp_path):
    cifar_binary(tmp_path)
    pixels, _ = random_images(20, (3072,), 10, 0)
    blocks = pixels.reshape(20, 3, 8, 4, 8, 4).mean(axis=(3, 5))
    found = build("cifar10", tmp_path, shrink=4, standardize=False)
    np.testing.assert_allclose(found.train.inputs[:20].numpy(), blocks / 255, rtol=1e-5)
    assert found.in_shape == (3, 8, 8)


def test_the_first_images_need_only_the_first_files(tmp_path):
    folder = cifar_binary(tmp_path)
    whole = build("cifar10", tmp_path)
    for number in (3, 4, 5):
        (folder / f"data_batch_{number}.bin").unlink()
    part = build("cifar10", tmp_path, train_samples=25, test_samples=3)
    assert torch.equal(part.train.inputs, whole.train.inputs[:25])
    assert part.test.samples == 3
    with pytest.raises(DataError, match=r"data_batch_3\.bin is missing"):
        build("cifar10", tmp_path, train_samples=41)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "MNIST/raw"),
        ("mnist", "mnist"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("fashion_mnist", "fashion-mnist"),
        ("fashion_mnist", "."),
    ],
)
def test_idx_files_are_read_packed_or_not(tmp_path, name, place, packed):
    idx_folder(tmp_path / "root" / place if place != "." else tmp_path / "root", packed=packed)
    data = build(name, tmp_path / "root", standardize=False)
    for split, seed in ((data.train, 0), (data.test, 1)):
        pixels, labels = random_images(20, (28, 28), 10, seed)
        np.testing.assert_array_equal((split.inputs[:, 0] * 255).round().numpy(), pixels)
        assert split.targets.tolist() == labels
    assert data.in_shape == (1, 28, 28)


def test_the_root_comes_from_the_argument_then_the_environment_then_data(tmp_path, monkeypatch):
    cifar_binary(tmp_path / "one")
    cifar_binary(tmp_path / "data", count=30)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLATKIT_DATA_ROOT", raising=False)
    assert DATASETS.build("cifar10", verify=False).test.samples == 30
    monkeypatch.setenv("FLATKIT_DATA_ROOT", str(tmp_path / "one"))
    assert DATASETS.build("cifar10", verify=False).test.samples == 20
    assert build("cifar10", tmp_path / "data").test.samples == 30


@pytest.mark.parametrize(
    ("name", "folder", "source"),
    [
        ("cifar10", "cifar-10-batches-py/", "cs.toronto.edu"),
        ("cifar100", "cifar-100-python/", "cs.toronto.edu"),
        ("mnist", "MNIST/raw/", "mnist"),
        ("fashion_mnist", "fashion-mnist/", "zalandoresearch"),
    ],
)
def test_absent_data_are_an_error_that_says_where_to_look_and_where_to_get_them(
    tmp_path, name, folder, source
):
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(DataError) as caught:
        build(name, tmp_path)
    message = str(caught.value)
    assert folder in message
    assert source in message
    assert "`data_root`" in message
    assert "FLATKIT_DATA_ROOT" in message
    assert f"unpack {tmp_path / 'cifar-10-python.tar.gz'} first" in message


def test_files_that_differ_from_the_published_ones_are_refused_by_default(tmp_path):
    cifar_python(tmp_path / "a")
    content = (tmp_path / "a" / "cifar-10-batches-py" / "data_batch_1").read_bytes()
    digest = hashlib.md5(content).hexdigest()
    with pytest.raises(DataError, match=f"md5 {digest}, published c99cafc1.*verify=false"):
        build("cifar10", tmp_path / "a", verify=True)
    cifar_binary(tmp_path / "b")
    with pytest.raises(DataError, match=r"holds 20 images, published were 10000.*verify=false"):
        build("cifar10", tmp_path / "b", verify=True)
    idx_folder(tmp_path / "c", packed=True)
    with pytest.raises(DataError, match="not the published file"):
        build("mnist", tmp_path / "c", verify=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"train_samples": 101}, "train_samples must be at most the 100 images"),
        ({"test_samples": 21}, "test_samples must be at most the 20 images"),
        ({"train_samples": 0}, "train_samples must be a whole number >= 1"),
        ({"test_samples": 2.5}, "test_samples must be a whole number"),
        ({"shrink": 0}, "shrink must be a whole number >= 1"),
        ({"shrink": 5}, r"shrink must divide the sides \[32, 32\]"),
    ],
)
def test_numbers_of_samples_that_cannot_be_are_named(tmp_path, kwargs, message):
    cifar_binary(tmp_path)
    with pytest.raises(InvalidArgumentError, match=message):
        build("cifar10", tmp_path, **kwargs)


def test_a_truncated_binary_file_and_a_label_outside_the_classes_are_refused(tmp_path):
    folder = cifar_binary(tmp_path)
    first = folder / "data_batch_1.bin"
    content = first.read_bytes()
    first.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"data_batch_1\.bin is damaged: 61459 bytes"):
        build("cifar10", tmp_path)
    first.write_bytes(b"\x0a" + content[1:])
    with pytest.raises(DataError, match=r"label of cifar10 lies outside 0 \.\. 9"):
        build("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda packed: packed[:-9], "damaged"),
        (lambda packed: packed[:40] + b"\0\0\0\0" + packed[44:], "damaged|not an idx"),
        (lambda packed: b"not gzip", "damaged"),
    ],
)
def test_a_damaged_packed_file_is_refused(tmp_path, change, message):
    folder = idx_folder(tmp_path / "mnist", packed=True)
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=message):
        build("mnist", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x0d\x03", "not an idx file of bytes"),
        (b"\0\0\x08\x03\0\0\0\x01", "ends within its header"),
        (b"\0\0\x08\x01\0\0\0\x05abc", r"3 values for the shape \[5\]"),
        (b"\0\0\x08\x01\0\0\0\x01abc", "3 values"),
        (b"\0\0\x08\x01\0\0\0\x01a", "do not belong together"),
    ],
)
def test_a_malformed_idx_file_is_refused(tmp_path, content, message):
    folder = idx_folder(tmp_path / "mnist", packed=False)
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=message):
        build("mnist", tmp_path)


def test_a_batch_of_a_later_python_and_numpy_is_read(tmp_path):
    pixels, labels = random_images(12, (3072,), 10, 3)
    for protocol in (3, 4):  # 2 and 5 name other functions, as no published file does
        content = pickle.dumps({"data": pixels, "labels": labels}, protocol=protocol)
        batch = read_batch(tmp_path, content)
        np.testing.assert_array_equal(batch["data"], pixels)
        assert batch["labels"] == labels


def test_the_pickle_of_the_tests_is_what_python_2_wrote():
    """The plain unpickler reads it to the same array, so the opcodes are right."""
    pixels, labels = random_images(12, (3072,), 10, 3)
    content = python2_pickle(pixels, labels, b"labels")
    names = {str(arg) for op, arg, _ in pickletools.genops(content) if op.name == "GLOBAL"}
    assert names == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer NumPy moved these names
        batch = pickle.Unpickler(io.BytesIO(content), encoding="bytes").load()
    np.testing.assert_array_equal(batch[b"data"], pixels)


class _Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)  # pyright: ignore[reportDeprecated]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_a_command_is_refused_and_does_not_run(tmp_path, protocol):
    folder = cifar_python(tmp_path)
    witness = tmp_path / "executed"
    bomb = pickle.dumps({"data": _Bomb(f"touch {witness}")}, protocol=protocol)
    (folder / "data_batch_1").write_bytes(bomb)
    with pytest.raises(DataError, match=r"would import \w+\.system"):
        build("cifar10", tmp_path)
    assert not witness.exists()
    pickle.Unpickler(io.BytesIO(bomb)).load()  # the bomb is a real one
    assert witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x01x\x85R.",
        b"(S'true'\nios\nsystem\n.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"c_codecs\nencode\n.",
        b"cnumpy\n__builtins__\n.",
        b"cflatkit.data.cifar\nread_batch\n.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"P0\n.",  # a persistent id
    ],
)
def test_every_other_name_is_refused(content):
    with pytest.raises(DataError, match="not a batch of CIFAR"):
        read_batch(Path("batch"), content)


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy\ndtype\n(S'O'\nK\x00K\x01tR.",
        b"cnumpy\ndtype\n(S'O'\nI00\nI01\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tS'b'\ntR.",
        b"cnumpy\nndarray\n)R.",
        b"cnumpy\nndarray\n}S'a'\nI1\nsb.",
        b"cnumpy\ndtype\nN}S'__call__'\nI1\ns\x86b.",
        b"cnumpy\ndtype\n)\x81.",
    ],
)
def test_the_allowed_names_make_arrays_of_bytes_and_nothing_else(content):
    with pytest.raises(DataError, match="not a batch of CIFAR"):
        read_batch(Path("batch"), content)
    pixels, labels = random_images(12, (3072,), 10, 3)  # and nothing stuck
    batch = read_batch(Path("batch"), python2_pickle(pixels, labels, b"labels"))
    np.testing.assert_array_equal(batch["data"], pixels)


@pytest.mark.parametrize(
    "batch",
    [
        {},
        {"labels": [1]},
        {"data": np.zeros((1, 3072), np.uint8)},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [1]},
        {"data": np.zeros((1, 3071), np.uint8), "labels": [1]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": ["1"]},
        {"data": [0] * 3072, "labels": [1]},
        {"data": np.zeros((0, 3072), np.uint8), "labels": []},
    ],
)
def test_a_pickle_without_images_and_labels_that_fit_is_refused(tmp_path, batch):
    folder = cifar_python(tmp_path)
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=4))
    with pytest.raises(DataError, match=r"needs data, bytes .* and labels"):
        build("cifar10", tmp_path)


def test_mutated_batches_are_read_or_refused_but_raise_nothing_else(tmp_path):
    pixels, labels = random_images(10, (64,), 10, 3)
    whole = python2_pickle(pixels, labels, b"labels")
    generator = np.random.default_rng(0)
    for _ in range(2000):
        content = bytearray(whole[: generator.integers(1, len(whole) + 1)])
        for at in generator.integers(0, len(content), generator.integers(1, 4)):
            content[at] = generator.integers(0, 256)
        try:
            read_batch(Path("batch"), bytes(content))
        except DataError:
            continue


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    folder = cifar_binary(tmp_path)
    (folder / "test_batch.bin").unlink()
    (folder / "test_batch.bin").mkdir()
    with pytest.raises(DataError, match="cannot read"):
        build("cifar10", tmp_path)
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="no CIFAR-10 in"):
        build("cifar10", tmp_path)
