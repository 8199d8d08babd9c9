"""Writes small data sets as the archives unpack; shares no code with the readers."""

import gzip
import struct
from pathlib import Path

import numpy as np

TEXT = b"testing batch 1 of 1"


def random_images(count: int, shape: tuple[int, ...], classes: int, seed: int):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, count - classes)])
    return pixels, labels.tolist()


def short_string(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def python2_pickle(pixels: np.ndarray, labels: list[int], key: bytes) -> bytes:
    """Return a batch opcode by opcode, as Python 2 with protocol 2 wrote the published files."""
    count, width = pixels.shape
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short_string(b"b")
        + b"\x87R(K\x01"  # tuple of 3, REDUCE, MARK, version 1
        + b"J" + struct.pack("<i", count) + b"J" + struct.pack("<i", width) + b"\x86"
        + b"cnumpy\ndtype\n" + short_string(b"u1") + b"K\x00K\x01\x87R"
        + b"(K\x03" + short_string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89T" + struct.pack("<i", pixels.size) + pixels.tobytes() + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(b"J" + struct.pack("<i", label) for label in labels) + b"e"
    items = short_string(b"data") + array + short_string(key) + numbers
    items += short_string(b"batch_label") + short_string(TEXT)
    return b"\x80\x02}(" + items + b"u."


def cifar_python(root: Path, classes: int = 10, count: int = 20) -> Path:
    """Write `cifar-10-batches-py` or `cifar-100-python` with `count` images a file."""
    if classes == 10:
        folder, names = root / "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)]
        test, key = "test_batch", b"labels"
    else:
        folder, names, test, key = root / "cifar-100-python", ["train"], "test", b"fine_labels"
    folder.mkdir(parents=True)
    for seed, name in enumerate([*names, test]):
        pixels, labels = random_images(max(count, classes), (3072,), classes, seed)
        (folder / name).write_bytes(python2_pickle(pixels, labels, key))
    return folder


def cifar_binary(root: Path, classes: int = 10, count: int = 20) -> Path:
    """Write the same images as `cifar_python` in the binary layout."""
    if classes == 10:
        folder, names = root / "cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)]
        test = "test_batch.bin"
    else:
        folder, names, test = root / "cifar-100-binary", ["train.bin"], "test.bin"
    folder.mkdir(parents=True)
    for seed, name in enumerate([*names, test]):
        pixels, labels = random_images(max(count, classes), (3072,), classes, seed)
        coarse = b"\x07" if classes == 100 else b""
        rows = zip(labels, pixels, strict=True)
        records = [coarse + bytes([label]) + image.tobytes() for label, image in rows]
        (folder / name).write_bytes(b"".join(records))
    return folder


def idx_folder(folder: Path, *, packed: bool, count: int = 20) -> Path:
    """Write the four idx files of MNIST's layout."""
    folder.mkdir(parents=True)
    for seed, split in enumerate(("train", "t10k")):
        pixels, labels = random_images(count, (28, 28), 10, seed)
        images = struct.pack(">BBBBIII", 0, 0, 8, 3, count, 28, 28) + pixels.tobytes()
        targets = struct.pack(">BBBBI", 0, 0, 8, 1, count) + bytes(labels)
        for name, content in ((f"{split}-images-idx3-ubyte", images),
                              (f"{split}-labels-idx1-ubyte", targets)):  # fmt: skip
            target = folder / (f"{name}.gz" if packed else name)
            target.write_bytes(gzip.compress(content) if packed else content)
    return folder
