"""Files that are made to harm: each is refused in one line, and nothing of it runs."""

import io
import json
import os
import pickle
import re
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from flatkit.checkpoints import load
from flatkit.checkpoints.readers.torch_words import vocabulary
from flatkit.errors import CheckpointError
from flatkit.files.plain_pickle import MalformedPickleError, Vocabulary, read_pickle


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rezip(path, change, *, compression=zipfile.ZIP_STORED):
    """Write the records of an archive again, changed, with right checksums."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            changed = change(name.rpartition("/")[2], data)
            if changed is not None:
                archive.writestr(name, changed)
    return path


@pytest.fixture
def file(tmp_path):
    torch.save({"w": torch.arange(4.0)}, tmp_path / "x.pt")
    return tmp_path / "x.pt"


def test_a_zip_bomb_is_refused(file):
    rezip(file, lambda _, data: data + bytes(10**7), compression=zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 10**5
    assert "compressed or encrypted" in refusal(file)


def test_a_bomb_of_records_that_share_their_bytes_is_refused(file):
    data = bytearray(rezip(file, lambda _, data: data).read_bytes())
    end = data.rindex(b"PK\x05\x06")
    count, _, size, start = struct.unpack("<HHII", data[end + 8 : end + 20])
    directory = bytes(data[start : start + size])
    again = directory.replace(b"data/0", b"data/1")  # a second name for every byte
    tail = struct.pack("<HHII", 2 * count, 2 * count, 2 * size, start)
    file.write_bytes(data[:end] + again + data[end : end + 8] + tail + data[end + 20 :])
    assert "two records of one name" in refusal(file) or "overlap" in refusal(file)


@pytest.mark.parametrize("numel", [5, 2**40, 2**61])
def test_a_storage_that_claims_more_than_its_bytes_is_refused(file, numel):
    def change(name, data):
        long = pickle.dumps(numel, protocol=2)[2:-1]
        return data.replace(b"K\x04tq", long + b"tq") if name == "data.pkl" else data

    assert "is said to have" in refusal(rezip(file, change))


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"QK\x00K\x04", b"QK\x01K\x04"), (b"K\x04\x85", b"K\x05\x85"), (b"K\x01\x85", b"K\x02\x85")],
    ids=["offset", "shape", "stride"],
)
def test_a_tensor_that_reaches_out_of_its_storage_is_refused(file, old, new):
    def change(name, data):
        assert name != "data.pkl" or old in data
        return data.replace(old, new) if name == "data.pkl" else data

    assert "in a storage of 16" in refusal(rezip(file, change))


def test_a_tensor_blown_up_by_strides_is_refused(tmp_path):
    torch.save({"w": torch.ones(1).expand(10**12)}, tmp_path / "x.pt")
    assert "much larger than the file" in refusal(tmp_path / "x.pt")


def test_another_byte_order_is_refused(file):
    assert "byte order is b'big'" in refusal(
        rezip(file, lambda name, data: b"big" if name == "byteorder" else data)
    )
    torch.save({"w": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    old = file.read_bytes()
    file.write_bytes(re.sub(rb"(little_endianq.)\x88", lambda found: found[1] + b"\x89", old))
    assert "not little-endian" in refusal(file)
    table = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(struct.pack(">Q", len(table)) + table + bytes(4))
    assert "big-endian" in refusal(file)


def test_a_stream_of_before_torch_1_6_that_is_cut_is_refused(file):
    torch.save({"w": torch.arange(4.0)}, file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    for end in range(1, len(whole), 7):
        file.write_bytes(whole[:end])
        assert "truncated" in refusal(file) or "damaged" in refusal(file)


@pytest.mark.parametrize("way", [{}, {"_use_new_zipfile_serialization": False}])
def test_sparse_and_quantised_tensors_are_refused_by_name(tmp_path, way):
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "x.pt", **way)
    assert "torch._utils._rebuild_sparse_tensor" in refusal(tmp_path / "x.pt")


def deep(levels):
    return b"\x80\x02" + b")" + b"\x85" * levels + b"."


PICKLES = {
    "nested a hundred thousand deep": deep(10**5),
    "a deep tuple as a key": b"\x80\x02}" + b")" + b"\x85" * 10**5 + b"K\x01s.",
    "lists of lists of lists": b"\x80\x02]q\x00(" + b"h\x00" * 9 + b"e.",  # it holds itself
    "a billion laughs": b"\x80\x02]q\x00"
    + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(20))
    + b".",
    "a memo of two billion": b"\x80\x02Nr\xff\xff\xff\x7f0",
    "a text of four gigabytes": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "copies of copies": b"\x80\x02c_codecs\nencode\nq\x00X\x00\x00\x10\x00"
    + b"a" * 2**20
    + b"X\x06\x00\x00\x00latin1\x86q\x01]("
    + b"h\x00h\x01R" * 10**5
    + b"e.",
    "an int of a million digits": b"\x80\x02L" + b"9" * 10**6 + b"L\n.",
    "nothing": b"",
    "no stack": b"\x80\x020000.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a call of a name": b"\x80\x02ctorch\nfloat32\n)R.",
    "a device that is none": b"\x80\x02ctorch\ndevice\n(NNNNtR.",
    "a set that is a tensor": b"\x80\x02c__builtin__\nset\nK\x01\x85R.",
}


@pytest.mark.parametrize("data", PICKLES.values(), ids=PICKLES.keys())
def test_pickles_that_waste_memory_or_time_or_make_no_sense_are_refused(data):
    if data == PICKLES["a set that is a tensor"]:
        assert read_pickle(data, vocabulary()) == []
        return
    with pytest.raises(MalformedPickleError):
        read_pickle(data, vocabulary())


def test_a_pickle_of_plain_data_says_what_python_reads():
    content = {
        "n": [None, True, False, 1, -1, 2**40, 2**300, 1.5, "λ", b"\x00\xff", (), (1,), (1, 2, 3)],
        "d": {1: {2: {}}, "x": [[], ["y"]]},
        ("a", 1): "tuple key",
    }
    for protocol in range(6):
        if protocol in (1, 2):
            continue  # protocol 2 has no bytes; see the test of every way of torch.save
        words = vocabulary() if protocol < 3 else Vocabulary()
        assert read_pickle(pickle.dumps(content, protocol=protocol), words) == content


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, folder / "one.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "outside.safetensors")
    return folder


def index(folder, name):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "x/../../outside.safetensors", "/etc/passwd", "..", "", "\0"]
)
def test_an_index_that_leads_out_of_its_folder_is_refused(folder, name):
    index(folder, name)
    message = refusal(folder)
    assert "outside of it" in message or "not a regular file" in message


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(folder):
    index(folder, "link.safetensors")
    (folder / "link.safetensors").symlink_to(folder / "one.safetensors")
    assert load(folder).state_dict["w"].tolist() == [1, 1]
    (folder / "link.safetensors").unlink()
    (folder / "link.safetensors").symlink_to(folder.parent / "outside.safetensors")
    assert "is a link to" in refusal(folder)
    (folder / "link.safetensors").unlink()
    (folder / "link.safetensors").symlink_to(folder / "link.safetensors")  # to itself
    assert refusal(folder)


def test_a_folder_that_is_a_link_out_is_refused(folder):
    (folder / "sub").symlink_to(folder.parent)
    index(folder, "sub/outside.safetensors")
    assert "is a link to" in refusal(folder)


def test_the_links_of_the_hub_cache_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"w": torch.ones(2)}, blobs / "0123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    (snapshot / "config.json").write_text('{"model_type": "gpt2"}')
    assert load(snapshot).format == "Hugging Face folder (safetensors)"


def test_pipes_and_folders_in_place_of_files_are_refused(folder):
    os.mkfifo(folder / "pipe.safetensors")
    index(folder, "pipe.safetensors")
    assert "not a regular file" in refusal(folder)
    index(folder, ".")
    assert refusal(folder)


class Evil:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))


def test_the_table_of_a_distributed_checkpoint_runs_nothing(tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "trace")))
    assert "its table names posix.mkdir" in refusal(tmp_path)
    assert not (tmp_path / "trace").exists()


@pytest.fixture
def distributed(tmp_path):
    import warnings

    from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_distributed({"model": {"w": torch.arange(6.0)}}, checkpoint_id=tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"__0_0.distcp", b"../../passwd", "outside of it"),
        (b"__0_0.distcp", b"__1_0.distcp", "is missing"),
        (b"float32", b"float64", "not what the table says"),
        (b"K\x06\x85", b"K\x07\x85", "cannot be read"),
    ],
)
def test_a_table_that_does_not_fit_its_files_is_refused(distributed, old, new, why):
    table = distributed / ".metadata"
    assert old in table.read_bytes()
    table.write_bytes(table.read_bytes().replace(old, new))
    assert why in refusal(distributed)


def test_a_file_of_a_distributed_checkpoint_that_is_damaged_is_refused(distributed):
    (file,) = distributed.glob("*.distcp")
    data = bytearray(file.read_bytes())
    data[data.index(torch.arange(6.0).numpy().tobytes()) + 5] ^= 1
    file.write_bytes(data)
    assert "checksum" in refusal(distributed)


def test_safetensors_are_refused_where_their_own_library_refuses_them(tmp_path):
    from safetensors import SafetensorError
    from safetensors.torch import load as load_bytes

    def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
        return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}

    tables = [
        ({"w": entry()}, 7),
        ({"w": entry()}, 9),
        ({"w": entry(offsets=(0, 4))}, 4),
        ({"w": entry(offsets=(8, 0))}, 8),
        ({"w": entry(shape=(-2,))}, 8),
        ({"w": entry(shape=(1 << 62, 8))}, 8),
        ({"w": entry(), "v": entry()}, 8),
        ({"w": entry(), "v": entry(offsets=(12, 20))}, 20),
        ({"w": entry(dtype="F33")}, 8),
        ({"w": {"dtype": "F32", "shape": [2]}}, 8),
        ({"w": 3}, 8),
        ([1], 8),
    ]
    for table, nbytes in tables:
        text = json.dumps(table).encode()
        data = struct.pack("<Q", len(text)) + text + bytes(nbytes)
        with pytest.raises(SafetensorError):
            load_bytes(data)
        (tmp_path / "x").write_bytes(data)
        assert refusal(tmp_path / "x")


def test_a_table_that_names_a_tensor_twice_is_refused(tmp_path):
    entry = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    text = f'{{"w": {entry}, "w": {entry}}}'.encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    assert "a name twice" in refusal(tmp_path / "x")


def test_an_archive_that_torch_would_take_from_the_front_is_hashed_whole(file):
    """Bytes before a zip archive are legal; the file is then no longer one of torch.save."""
    file.write_bytes(b"x" * 10 + file.read_bytes())
    assert "is not a file of torch.save" in refusal(file)


def test_buffers_are_not_shared_with_the_file(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "x.pt")
    state = load(tmp_path / "x.pt").state_dict
    state["w"].zero_()
    assert load(tmp_path / "x.pt").state_dict["w"].tolist() == [1, 1, 1]
    assert io.BytesIO((tmp_path / "x.pt").read_bytes()).read(2) == b"PK"
