"""Damaged files: each is read or refused with `CheckpointError`, and nothing else happens.

Some hundred of them here; `python -m benchmarks.fuzz` tries thousands.
"""

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatkit.checkpoints.readers.torch_words import vocabulary
from flatkit.files.plain_pickle import (
    ForeignObjectError,
    MalformedPickleError,
    read_pickle,
)
from tests.checkpoints.mutations import FORMATS, attempt, damaged, write_all


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("seeds"))


@pytest.mark.parametrize("name", FORMATS)
def test_undamaged_they_are_all_read(checkpoints, name):
    assert attempt(checkpoints[name]) == "read"


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(name=st.sampled_from(FORMATS), seed=st.integers(0, 2**32))
def test_damaged_they_are_read_or_refused(checkpoints, tmp_path, name, seed):
    target = tmp_path / f"damaged-{name}"
    assert attempt(damaged(checkpoints[name], target, Random(seed))) in ("read", "refused")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_pickle_of_plain_data_or_refused(data):
    for words in (vocabulary(), vocabulary(lambda identity: identity)):
        for start in (b"", b"\x80\x02", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("):
            try:
                read_pickle(start + data, words)
            except (MalformedPickleError, ForeignObjectError):
                continue
