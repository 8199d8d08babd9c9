import subprocess
import sys
from pathlib import Path

import pytest

from flatkit.data import DATASETS
from flatkit.errors import InvalidArgumentError, PluginError
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


def package(folder: Path, name: str, group: str, point: str, source: str = "") -> None:
    """Lay out an installed package with one entry point."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{point}\n")
    (folder / f"{name}.py").write_text(source)


def test_another_package_adds_a_name_that_is_listed_without_importing_it(tmp_path, monkeypatch):
    package(tmp_path, "toy_laws", "toy.laws", "toy = toy_laws:build", "def build(*, a=1): return a")
    monkeypatch.syspath_prepend(tmp_path)
    laws: Registry = Registry("law", {"normal": "statistics:NormalDist"}, group="toy.laws")
    assert laws.names == ("normal", "toy")
    assert "toy_laws" not in sys.modules
    assert laws.build("toy", a=3) == 3
    with pytest.raises(InvalidArgumentError, match="law toy has no argument 'b'"):
        laws.build("toy", b=3)
    monkeypatch.undo()
    assert laws.names == ("normal",)  # found anew on another path


def test_a_package_that_breaks_or_takes_a_name_twice_is_named(tmp_path, monkeypatch):
    package(tmp_path / "a", "toy_broken", "toy.laws", "toy = toy_broken:build", "import nowhere")
    monkeypatch.syspath_prepend(tmp_path / "a")
    laws: Registry = Registry("law", {"normal": "statistics:NormalDist"}, group="toy.laws")
    assert "toy" in laws
    with pytest.raises(PluginError, match=r"package toy_broken, .*ModuleNotFoundError: .*nowhere"):
        laws.build("toy")
    package(tmp_path / "b", "toy_twice", "toy.laws", "toy = toy_twice:build")
    monkeypatch.syspath_prepend(tmp_path / "b")
    with pytest.raises(PluginError, match=r"'toy' of toy\.laws is added by toy_\w+ and by toy_\w+"):
        _ = laws.names
    package(tmp_path / "c", "toy_own", "toy.other", "normal = toy_own:build")
    monkeypatch.syspath_prepend(tmp_path / "c")
    other: Registry = Registry("law", {"normal": "statistics:NormalDist"}, group="toy.other")
    with pytest.raises(PluginError, match="added by flatkit and by toy_own"):
        other.load("normal")


TOY = """
from flatkit.training.optimizers import OptimizerEntry

LION = OptimizerEntry("toy_lion_torch:Lion", {"lr": 0.5})
BAD = OptimizerEntry("toy_lion_torch:Lion", {"lr": 0.5, "sigma": 1.0})
"""


def test_another_package_adds_an_optimizer(tmp_path, monkeypatch):
    import torch

    from flatkit.training import TrainingConfig
    from flatkit.training.optimizers import OPTIMIZERS, build_optimizer

    points = "toy_lion = toy_lion:LION\ntoy_bad = toy_lion:BAD"
    package(tmp_path, "toy_lion", "flatkit.optimizers", points, TOY)
    (tmp_path / "toy_lion_torch.py").write_text(
        "import torch\nclass Lion(torch.optim.SGD):\n"
        "    def __init__(self, params, *, lr, beta=0.9):\n"
        "        super().__init__(params, lr=lr, momentum=beta)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert OPTIMIZERS.names[-2:] == ("toy_lion", "toy_bad")
    config = TrainingConfig(optimizer="toy_lion", optimizer_kwargs={"beta": 0.3})
    (group,) = build_optimizer(config, torch.nn.Linear(1, 1)).param_groups
    assert (group["lr"], group["momentum"]) == (0.5, 0.3)
    wrapped = build_optimizer(
        TrainingConfig(optimizer="sam", base="toy_lion"), torch.nn.Linear(1, 1)
    )
    assert wrapped.param_groups[0]["lr"] == 0.5
    with pytest.raises(InvalidArgumentError, match="momentum does not apply to optimizer toy_lion"):
        TrainingConfig(optimizer="toy_lion", momentum=0.5)
    with pytest.raises(PluginError, match=r"toy_bad names settings .* not have: sigma"):
        TrainingConfig(optimizer="toy_bad")
