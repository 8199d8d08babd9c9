"""Weights are found in any structure of plain data and foreign objects, as they were saved."""

import argparse
import collections
import datetime
import pathlib
import tempfile

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flatkit
from flatkit.checkpoints.inspection import inspect

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.complex_numbers(),
    st.datetimes(),
    st.timedeltas(),
    st.decimals(),
    st.uuids(),
    st.just(pathlib.Path("x")),
    st.just(np.float32(1)),
    st.just(np.ones(2)),
    st.just(torch.float32),
    st.just(datetime.timezone.utc),
)
keys = st.one_of(st.text(max_size=4), st.integers(), st.tuples(st.integers(), st.text(max_size=2)))
anything = st.recursive(
    leaves,
    lambda parts: st.one_of(
        st.lists(parts, max_size=3),
        st.tuples(parts, parts),
        st.dictionaries(keys, parts, max_size=3),
        st.dictionaries(keys, parts, max_size=3).map(lambda d: collections.defaultdict(list, d)),
        st.dictionaries(keys, parts, max_size=3).map(collections.OrderedDict),
        parts.map(lambda part: argparse.Namespace(part=part)),
        st.lists(parts, max_size=3).map(collections.deque),
    ),
    max_leaves=12,
)
shapes = st.lists(st.integers(0, 3), max_size=3)
dtypes = st.sampled_from(["float32", "float16", "bfloat16", "complex64", "int64", "bool"])
names = st.text(st.characters(exclude_characters=".", codec="utf-8"), min_size=1, max_size=4)
states = st.dictionaries(names, st.tuples(shapes, dtypes), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(states, anything, anything, st.sampled_from([2, 3, 4, 5]), st.booleans())
def test_a_state_dict_is_found_whatever_stands_beside_it(shaped, first, second, protocol, old):
    state = {
        name: (3 * torch.rand(shape)).to(getattr(torch, dtype))
        for name, (shape, dtype) in shaped.items()
    }
    content = {"a": first, "state_dict": state, "b": second}
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "x.pt"
        zipped = not old
        torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        checkpoint = flatkit.load(file)
        assert inspect(file)["entry"] == checkpoint.entry == "state_dict"
    assert checkpoint.state_dict.keys() == state.keys()
    for name, tensor in state.items():
        assert checkpoint.state_dict[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.state_dict[name], tensor)
