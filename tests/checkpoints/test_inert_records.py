"""What stands beside the weights never costs the file, is never made, and never runs."""

import argparse
import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import io
import operator
import os
import pathlib
import pickle
import random
import types
import uuid
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import flatkit
from flatkit.checkpoints.inspection import inspect
from flatkit.checkpoints.readers.torch_words import vocabulary
from flatkit.errors import CheckpointError
from flatkit.files.plain_pickle import MalformedPickleError, Record, read_pickle


class Colour(enum.Enum):
    RED = 1


class Flags(enum.IntFlag):
    A = 1


class Text(str, enum.Enum):
    A = "a"


@dataclasses.dataclass
class Settings:
    lr: float = 0.1


class Node:
    """A record that holds itself, as settings that know their parents do."""

    def __init__(self) -> None:
        self.parent = self
        self.children = [self]


class Pair(NamedTuple):
    a: int


class Outer:
    class Inner:
        pass

    def method(self) -> None:
        pass


class Slotted:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1


class Numbers(dict[str, int]):
    pass


class Parameter(nn.Parameter):
    pass


def attributed() -> torch.Tensor:
    tensor = torch.ones(2)
    tensor.note = "x"  # type: ignore[attr-defined]
    return tensor


RECORDS: dict[str, Any] = {
    "dataclass": Settings(),
    "enum": [Colour.RED, Flags.A, Text.A],
    "dates": [
        datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
        datetime.date(2020, 1, 1),
    ],
    "circle": Node(),
    "named tuple": Pair(1),
    "inner": Outer.Inner(),
    "bound method": Outer().method,
    "slots": Slotted(),
    "class": Settings,
    "function": inspect,
    "dictionary of a class": Numbers(a=1),
    "namespaces": [argparse.Namespace(a=1), types.SimpleNamespace(a=1)],
    "paths": [pathlib.Path("a"), pathlib.PurePosixPath("b")],
    "NumPy": [np.float64(1), np.ones(3), np.ones((2, 2), order="F"), np.dtype("f4"), np.int64],
    "NumPy objects": np.array([{"a": 1}, None], dtype=object),
    "random states": [np.random.default_rng(0), np.random.RandomState(0), random.Random(0)],
    "Python's random state": random.getstate(),
    "bytes": [io.BytesIO(b"x"), bytearray(b"x"), b"x", array.array("d", [1.0])],
    "collections": [
        collections.defaultdict(list, {"a": [1]}),
        collections.defaultdict(dict, {}),
        collections.OrderedDict(a=1),
        collections.Counter("ab"),
        collections.deque([1], maxlen=2),
        collections.ChainMap({"a": 1}),
    ],
    "keys": {(1, (2, "a")): 1, frozenset({1, 2}): 2, Colour.RED: 3, torch.float32: 4, 1j: 5},
    "numbers": [1j, decimal.Decimal("1.5"), fractions.Fraction(1, 2), range(3), slice(1, 2)],
    "identifier": uuid.uuid4(),
    "version": torch.__version__,
    "partial": [functools.partial(torch.relu), functools.partial(operator.add, 1)],
    "torch": [torch.Size([1]), torch.float32, torch.device("cpu"), torch.finfo, torch.strided],
    "sparse": torch.eye(2).to_sparse(),
    "complex": [torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.complex64).conj()],
    "negated": torch.ones(2, dtype=torch.complex64).conj().imag,
    "parameters": [nn.Parameter(torch.ones(1)), Parameter(torch.ones(1)), attributed()],
    "meta": torch.ones(2, device="meta"),
    "lazy": nn.LazyLinear(2).weight,
    "small floats": torch.ones(2).to(torch.float8_e4m3fn),
    "storage": torch.ones(2).untyped_storage(),
    "modules": [nn.CrossEntropyLoss(torch.ones(2)), nn.LSTM(1, 1)],
    "optimizer": torch.optim.Adam([nn.Parameter(torch.ones(1))]),
    "scheduler": torch.optim.lr_scheduler.StepLR(
        torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), 1
    ),
    "data set": torch.utils.data.TensorDataset(torch.ones(1)),
    "error": ValueError("x"),
}
WAYS: dict[str, dict[str, Any]] = {
    "zip": {},
    "protocol 5": {"pickle_protocol": 5},
    "old": {"_use_new_zipfile_serialization": False},
}


def assert_read(path, model: nn.Module) -> None:
    other = nn.Linear(3, 2)
    flatkit.load(path).load_into(other)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("name", RECORDS)
def test_any_record_stands_beside_the_weights(tmp_path, name, way):
    model = nn.Linear(3, 2)
    if name == "small floats" and "_use_new_zipfile_serialization" in way:
        pytest.skip("torch cannot write it")
    torch.save({"record": RECORDS[name], "model": model.state_dict()}, tmp_path / "x.pt", **way)
    assert_read(tmp_path / "x.pt", model)


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_nested_tensors_stand_beside_the_weights(tmp_path):
    model = nn.Linear(3, 2)
    weight, scales = torch.randn(2, 4), torch.ones(2)
    records = [
        torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        torch.quantize_per_channel(weight, scales, torch.zeros(2), 0, torch.quint4x2),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    ]
    for way in WAYS.values():
        if "_use_new_zipfile_serialization" not in way:
            torch.save({"record": records, "model": model.state_dict()}, tmp_path / "x.pt", **way)
            assert_read(tmp_path / "x.pt", model)


@pytest.mark.parametrize("protocol", range(6))
def test_a_state_dict_that_was_pickled_without_torch_save_is_read(tmp_path, protocol):
    model = nn.Linear(3, 2)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": model.state_dict()}, protocol))
    assert_read(tmp_path / "x.pkl", model)


def test_a_state_dict_of_a_class_of_its_own_is_read(tmp_path):
    model = nn.Linear(3, 2)
    for state in (
        collections.defaultdict(dict, model.state_dict()),
        Numbers(model.state_dict()),  # type: ignore[arg-type]
    ):
        torch.save({"model": state}, tmp_path / "x.pt")
        assert_read(tmp_path / "x.pt", model)


def test_weights_of_classes_of_their_own_and_with_attributes_are_read(tmp_path):
    model = nn.Linear(3, 2)
    state = model.state_dict()
    state["bias"] = Parameter(state["bias"].clone())
    state["weight"].note = "first layer"  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "x.pt")
    assert_read(tmp_path / "x.pt", model)


class Harm:
    """An object whose unpickling would make a folder, in one of many ways."""

    def __init__(self, reduced: tuple[Any, ...]) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def harmful(trace: str) -> dict[str, Any]:
    command, harm = f"mkdir {trace}", Harm((os.mkdir, (trace,)))
    return {
        "system": Harm((os.system, (command,))),  # pyright: ignore
        "mkdir": harm,
        "eval": Harm((eval, (f"__import__('os').mkdir({trace!r})",))),
        "exec": Harm((exec, (f"import os; os.mkdir({trace!r})",))),
        "getattr": Harm((Harm((getattr, (os, "mkdir"))) and os.makedirs, (trace,))),
        "partial": Harm((functools.partial(os.mkdir, trace), ())),
        "method": Harm((operator.methodcaller("mkdir"), (pathlib.Path(trace),))),
        "map": Harm((list, (map(os.mkdir, [trace]),))),
        "state": Harm((Settings, (), {"x": harm})),
        "setter": Harm((Settings, (), [trace], None, None, exec)),
        "items": Harm(
            (collections.OrderedDict, (), None, None, iter([(Harm((os.mkdir, (trace,))), 1)]))
        ),
        "storage": Harm((torch.storage._load_from_bytes, (b"x",))),
        "subprocess": Harm((__import__("subprocess").getoutput, (command,))),
        "loader": Harm((pickle.loads, (pickle.dumps(harm),))),
    }


NAMES = tuple(harmful(""))


@pytest.mark.parametrize("name", NAMES)
def test_harmful_objects_stay_inert_beside_the_weights(tmp_path, name):
    trace = str(tmp_path / "trace")
    model = nn.Linear(3, 2)
    for protocol in (2, 5):
        content = {"x": harmful(trace)[name], "model": model.state_dict()}
        torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol)
        assert_read(tmp_path / "x.pt", model)
        assert inspect(tmp_path / "x.pt")["entry"] == "model"
        (tmp_path / "y.pkl").write_bytes(pickle.dumps({"model": content["x"]}, protocol))
        with pytest.raises(CheckpointError, match=r"whole objects|no weights|damaged"):
            flatkit.load(tmp_path / "y.pkl")
    assert not (tmp_path / "trace").exists()


CALLS = {
    "instance": b"(Vmkdir x\nios\nsystem\n.",
    "object": b"(cos\nsystem\nVmkdir x\no.",
    "chain of attributes": b"cbuiltins\ngetattr\n(cos\npath\nVos\ntR(Vsystem\ntR.",
    "attribute that is called": b"cbuiltins\ngetattr\n(cos\npath\nVos\ntR(Vmkdir x\ntR.",
    "setstate": b"\x80\x02cos\nsystem\n)\x81}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb.",
    "registry of extensions": b"\x80\x02\x82\x01)R.",
    "persistent": b"\x80\x02X\x01\x00\x00\x00xQ.",
    "persistent, a tuple": b"\x80\x02X\x06\x00\x00\x00modulecos\nsystem\n\x86Q.",
}


@pytest.mark.parametrize("name", CALLS)
def test_every_way_to_call_something_gives_a_record_and_calls_nothing(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = CALLS[name]
    if "persistent" in name:
        (tmp_path / "x.pt").write_bytes(data)
        with pytest.raises(CheckpointError):
            flatkit.load("x.pt")
        (tmp_path / "x.pt").unlink()
    else:
        assert isinstance(read_pickle(data, vocabulary()), Record)
    assert not list(tmp_path.iterdir())


BOMBS = {
    "keys that hold each other": b"\x80\x02}"
    + b")"
    + b"\x85"
    + b"q\x00h\x00\x86q\x00h\x00\x86" * 60
    + b"K\x01s.",
    "a bomb under many names": b"\x80\x02}q\x01]q\x00("
    + b"h\x00" * 100
    + b"e0h\x01("
    + b"".join(b"J" + number.to_bytes(4, "little") + b"h\x00" for number in range(10**3))
    + b"u.",
    "items of records of records": b"\x80\x02cx\ny\n)Rq\x00(K\x01h\x00K\x02h\x00u.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_records_are_no_way_around_the_limits(name, monkeypatch):
    monkeypatch.setattr("flatkit.files.plain_pickle.MAX_NODES", 50_000)  # to be quick
    with pytest.raises(MalformedPickleError):
        read_pickle(BOMBS[name], vocabulary())


def circles() -> dict[str, Any]:
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    own_list: list[Any] = [1]
    own_list.append(own_list)
    own_dict: dict[str, Any] = {}
    own_dict["me"] = own_dict
    return {"deep": deep, "list in itself": own_list, "dictionary in itself": own_dict}


@pytest.mark.parametrize("name", circles())
def test_what_is_endless_or_deep_costs_nothing_else(tmp_path, name):
    model = nn.Linear(3, 2)
    content = {"log": circles()[name], "model": model.state_dict()}
    torch.save(content, tmp_path / "x.pt")
    assert_read(tmp_path / "x.pt", model)
    torch.save({"run": content}, tmp_path / "x.pt")
    assert_read(tmp_path / "x.pt", model)
    content["me"] = content
    torch.save(content, tmp_path / "x.pt")
    assert_read(tmp_path / "x.pt", model)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (lambda: torch.eye(2).to_sparse(), "a sparse tensor; save it dense, as tensor.to_dense()"),
        (
            lambda: torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8),
            "a quantised tensor, whose codes cannot be differentiated; save tensor.dequantize()",
        ),
        (
            lambda: torch.ones(2, dtype=torch.complex64).conj(),
            "a conjugated or negated view; save tensor.resolve_conj().resolve_neg()",
        ),
        (
            lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "a nested tensor; save its parts, tensor.unbind()",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_not_read_are_named_and_the_advice_works(tmp_path, tensor, words):
    file = tmp_path / "x.pt"
    torch.save({"model": {"w": tensor()}, "ema": {"w": torch.ones(2)}}, file)
    with pytest.raises(CheckpointError, match=r"w of model is torch\._utils") as caught:
        flatkit.load(file)
    assert words in str(caught.value)
    assert "or choose what can be read with `entry`, e.g. ema" in str(caught.value)
    assert flatkit.load(file, entry="ema").state_dict["w"].tolist() == [1, 1]
    saved = eval(words[words.index("tensor.") :], {"tensor": tensor()})
    named = {"w": saved} if torch.is_tensor(saved) else dict(zip("ab", saved, strict=True))
    torch.save(named, file)
    assert flatkit.load(file).state_dict


def test_an_average_is_not_taken_for_a_model_that_was_pickled_whole(tmp_path):
    model = nn.Linear(3, 2)
    torch.save({"model": model, "ema": model.state_dict()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.*`entry`.*ema"):
        flatkit.load(tmp_path / "x.pt")
    assert flatkit.load(tmp_path / "x.pt", entry="ema").entry == "ema"


# of torch before 2.6, which calls itself within `pickle.loads`
@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")
@pytest.mark.parametrize("kind", ["torch", "torch, in a dictionary", "pickle"])
def test_the_recipe_for_a_whole_model_works_as_it_is_printed(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(3, 2)
    if kind == "pickle":
        pathlib.Path("x.pt").write_bytes(pickle.dumps({"net": model}))
    else:
        torch.save(model if kind == "torch" else {"epoch": 1, "net": model}, "x.pt")
    with pytest.raises(CheckpointError) as caught:
        flatkit.load("x.pt")
    recipe = str(caught.value).partition("convert it once: ")[2]
    exec(recipe, {})
    assert_read("weights.pt", model)
