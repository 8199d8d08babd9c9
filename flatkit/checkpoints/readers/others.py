"""Files that hold no weights flatkit could read: what they are, by their first bytes, and a way."""

from collections.abc import Mapping, Sequence

_UNPACK = "unpack it first"
_EXPORTED = (
    "which holds a graph for running and not the model that was trained; give the PyTorch "
    "checkpoint that it was made of"
)
_STARTS: Mapping[bytes, str] = {
    b"version https://git-lfs": "a pointer of git-lfs; fetch the file itself (git lfs pull)",
    b"<": "a web page; the download went wrong",
    b"\x1f\x8b": f"compressed with gzip; {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"compressed with zstd; {_UNPACK}",
    b"BZh": f"compressed with bzip2; {_UNPACK}",
    b"\xfd7zXZ\0": f"compressed with xz; {_UNPACK}",
    b"\x04\x22\x4d\x18": f"compressed with lz4; {_UNPACK}",
    b"]\0\0": f"compressed with lzma; {_UNPACK}",
    b"7z\xbc\xaf\x27\x1c": f"a 7z archive; {_UNPACK}",
    b"Rar!": f"a rar archive; {_UNPACK}",
    b"\x89HDF": "HDF5 (Keras?), which flatkit does not read",
    b"MATLAB 5.0": "a file of MATLAB; save its arrays with numpy.savez",
    b"GGUF": "GGUF, whose weights are quantised and cannot be differentiated",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"%PDF": "a PDF document",
    b"PAR1": "a Parquet table, which may be data and is no checkpoint",
}
_ZLIB = (b"x\x01", b"x\x5e", b"x\x9c", b"x\xda")
"""How streams of zlib begin, at its levels of compression."""
_CONVERT = (
    "where you trust the file, convert it once: import joblib, torch; x = joblib.load({!r}); "
    "torch.save({{k: torch.as_tensor(v) for k, v in x.items()}}, 'weights.pt')"
)
_WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".npz", ".npy")
OF_JOBLIB = b"joblib.numpy_pickle"
"""What the pickle names in which joblib puts arrays, between its instructions."""


def other_format(start: bytes, path: str) -> str:
    """Return what a file is that is no checkpoint, and what to do; nothing where it is not known.

    Args:
        start: its first bytes, 32 of them.
        path: its name, for what to do.

    >>> other_format(b"BZh91AY", "w.bz2"), other_format(b"import torch", "task.py")
    ('compressed with bzip2; unpack it first', '')
    """
    if start[4:8] == b"TFL3":
        return f"a model of TensorFlow Lite, {_EXPORTED}"
    if start[:1] == b"\x08" and any(name in start for name in (b"pytorch", b"onnx", b"tf2onnx")):
        return f"an ONNX model, {_EXPORTED}"
    if start.startswith(_ZLIB):
        return f"compressed with zlib, as by joblib.dump; {_CONVERT.format(path)}"
    return next((what for head, what in _STARTS.items() if start.startswith(head)), "")


def joblib_in_words(path: str) -> str:
    """Return what a file of joblib with arrays is, and how to convert it.

    >>> joblib_in_words("w.joblib").partition(";")[0]
    'a file of joblib, whose arrays stand between the instructions of a pickle'
    """
    between = "a file of joblib, whose arrays stand between the instructions of a pickle"
    return f"{between}; {_CONVERT.format(path)}"


def archive_in_words(names: Sequence[str]) -> str:
    """Return what a zip archive is that torch.save has not written.

    Args:
        names: of its files.

    >>> archive_in_words(["config.json", "model.weights.h5"]).partition(",")[0]
    'a Keras model'
    >>> archive_in_words(["run/best.pt", "log.txt"])
    'a zip archive that holds run/best.pt; unpack it first'
    """
    if any(name.endswith(".weights.h5") for name in names):
        return "a Keras model, whose HDF5 flatkit does not read"
    weights = next((name for name in names if name.endswith(_WEIGHTS)), None)
    return f"a zip archive that holds {weights[:80]}; {_UNPACK}" if weights else ""
