import subprocess
import sys

import pytest

from flatkit.data import DATASETS
from flatkit.errors import InvalidArgumentError
from flatkit.models import MODELS
from flatkit.registry import Registry, plain

LAWS = Registry("law", {"normal": "statistics:NormalDist", "absent": "no_such_module:f"})


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InvalidArgumentError, match=r"model must be one of cnn, mlp.*mean 'mlp'"):
        MODELS.build("mpl")


def test_an_unknown_argument_is_named_with_those_allowed():
    with pytest.raises(InvalidArgumentError, match=r"'hiden'.*takes in_shape.*mean 'hidden'"):
        MODELS.build("mlp", in_shape=(2,), classes=2, hiden=(3,))


def test_missing_arguments_are_all_named():
    with pytest.raises(InvalidArgumentError, match=r"mlp needs in_shape, classes$"):
        MODELS.build("mlp")


def test_a_builder_is_imported_only_when_it_is_used():
    assert LAWS.names == ("normal", "absent")
    assert LAWS.build("normal", mu=1.0, sigma=3.0).variance == 9.0
    with pytest.raises(ImportError):
        LAWS.build("absent")


def test_complete_arguments_rebuild_the_same_thing_and_are_plain():
    complete = MODELS.complete("mlp", in_shape=(4,), classes=3)
    assert complete == {
        "in_shape": [4],
        "classes": 3,
        "hidden": [64, 64],
        "activation": "tanh",
    }
    assert MODELS.complete("mlp", **complete) == complete


def test_objects_are_no_plain_data():
    with pytest.raises(InvalidArgumentError, match="model_kwargs, hidden must be numbers"):
        plain({"hidden": {1, 2}}, "model_kwargs")


def test_listing_names_imports_no_torch():
    code = (
        "import sys; import flatkit.training; from flatkit.training import TrainingConfig;"
        "from flatkit.models import MODELS; from flatkit.data import DATASETS;"
        "from flatkit.training import read_history;"
        "TrainingConfig(optimizer='gam');"
        "print(MODELS.names, DATASETS.names, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{MODELS.names} {DATASETS.names} False"
