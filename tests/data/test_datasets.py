import sys

import numpy as np
import pytest
import torch

from flatkit.data import DATASETS
from flatkit.errors import InvalidArgumentError, MissingDependencyError
from tests.data.local_folders import cifar_binary, cifar_python, idx_folder


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Return what a data set needs here: small folders in place of the published files."""
    root = tmp_path_factory.mktemp("data")
    cifar_python(root, 10)
    cifar_binary(root, 100)
    idx_folder(root / "mnist", packed=True)
    idx_folder(root / "fashion-mnist", packed=False)
    local = {"root": str(root), "verify": False}
    return {name: {} if name in ("digits", "gaussians") else local for name in DATASETS.names}


@pytest.mark.parametrize("name", DATASETS.names)
def test_a_data_set_is_the_same_each_time_and_rebuilds_from_its_arguments(name, arguments):
    first = DATASETS.build(name, **arguments[name])
    again = DATASETS.build(first.name, **first.kwargs)
    assert again.sha256() == first.sha256()
    assert first.kwargs == DATASETS.complete(name, **arguments[name])
    assert first.train.inputs.dtype == torch.float32
    assert first.train.targets.dtype == torch.int64
    assert set(first.train.targets.tolist()) == set(range(first.classes))


@pytest.mark.parametrize("name", DATASETS.names)
def test_a_digest_notices_one_changed_bit(name, arguments):
    data = DATASETS.build(name, **arguments[name])
    before = data.sha256()
    data.test.inputs[-1].view(-1)[-1] += 1e-3
    assert data.sha256() != before


def test_digits_are_those_of_scikit_learn_scaled_to_the_unit_interval():
    from sklearn.datasets import load_digits

    digits = DATASETS.build("digits")
    pixels, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    ours = torch.cat([digits.train.inputs, digits.test.inputs]).numpy().reshape(-1, 64) * 16
    targets = torch.cat([digits.train.targets, digits.test.targets]).numpy()
    rows = sorted(map(tuple, np.column_stack([ours, targets]).astype(int)))
    assert rows == sorted(map(tuple, np.column_stack([pixels, labels]).astype(int)))
    assert digits.in_shape == (1, 8, 8)
    assert digits.train.inputs.max() == 1


def test_the_test_set_holds_the_same_part_of_every_class():
    digits = DATASETS.build("digits", test_fraction=0.3)
    test, train = digits.test.targets.bincount(), digits.train.targets.bincount()
    assert test.tolist() == [round(0.3 * count) for count in (test + train).tolist()]


def test_another_split_seed_gives_another_split_of_the_same_size():
    one, two = DATASETS.build("digits"), DATASETS.build("digits", split_seed=1)
    assert one.test.samples == two.test.samples
    assert one.sha256() != two.sha256()


def test_gaussians_have_the_spread_that_was_asked_for():
    blobs = DATASETS.build("gaussians", samples=8000, classes=2, features=5, spread=0.25)
    for label in range(2):
        inputs = blobs.train.inputs[blobs.train.targets == label]
        assert inputs.mean(0).norm() == pytest.approx(1, abs=0.02)  # centres on the unit sphere
        torch.testing.assert_close(inputs.std(0), torch.full((5,), 0.25), atol=0.01, rtol=0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.001, -1, 2])
def test_a_split_without_training_or_test_samples_is_refused(fraction):
    with pytest.raises(InvalidArgumentError, match="test_fraction"):
        DATASETS.build("gaussians", test_fraction=fraction)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'flatkit\[demo\]'"):
        DATASETS.build("digits")
