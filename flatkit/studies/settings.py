"""The settings of a study: arms, seeds, conditions, controls, measures; from a TOML file; no torch.

title = "Does SAM end flatter than SGD on the digits, and does it generalise better?"
seeds = 5
base = "sgd"

[train]                     # of every arm: settings of `flatkit train`
data = "digits"
epochs = 60

[analyze]                   # of every analysis: settings of `flatkit analyze`
measures = ["loss", "accuracy", "top_eigenvalues", "trace"]

[conditions.clean]          # further settings of the training, each a study by itself
[conditions.noisy]
label_noise = 0.4

[arms.sgd]
[arms.sam]
optimizer = "sam"
tune = { rho = [0.05, 0.1, 0.2] }   # chosen on the validation split
[arms.longer]
epochs = 240

[controls]                  # what an arm must beat beside the base
gradients = "longer"
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from flatkit.checkpoints.parts import file_digest, file_of
from flatkit.checks import check_choice, check_count, check_fraction, check_positive, nearest
from flatkit.errors import InvalidArgumentError
from flatkit.measures.settings import AnalysisSettings
from flatkit.training.config import TrainingConfig
from flatkit.training.settings_file import Shipped

CONTROLS = {
    "gradients": "the base with as many gradients",
    "weight_decay": "the base with its weight decay tuned",
    "sam": "SAM",
}
"""What an arm may be held against beside the base."""
NO_CONDITION = ""
_SHIPPED = Shipped("flatkit.studies", "shipped", "study")
_TAKEN = ("figures", "study.json", "claims.json", "report.json", "report.md", "report.html")
"""Names in the folder of a study that arms and conditions cannot have."""
_OWN = ("seed", "device", "data_root", "log")
"""Settings of a training that are not an arm's."""
_USUAL_MEASURES = (
    "loss",
    "accuracy",
    "gradient_norm",
    "top_eigenvalues",
    "trace",
    "zeroth_order_sharpness",
    "first_order_flatness",
)
_VALIDATION = "validation_samples"


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: unique in the study.
        settings: of the training, beside those of all arms.
        tune: setting -> values, of which those with the best accuracy on the validation split are
            taken.

    >>> Arm("sam", {"optimizer": "sam"}, {"rho": [0.1, 0.2]}).variants()
    [{'rho': 0.1}, {'rho': 0.2}]
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def variants(self) -> list[dict[str, Any]]:
        """Return every combination of the values to choose from; one without any, if none are."""
        return [dict(zip(self.tune, one, strict=True)) for one in product(*self.tune.values())]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is trained, measured and asked.

    Attributes:
        arms: ways to train.
        base: the arm that the others are held against; the first, if none is named.
        seeds: of the trainings; each arm has a run of every one.
        title: the question.
        train: settings of every training.
        analyze: settings of every analysis.
        conditions: name -> further settings of the trainings; each condition has all the arms.
        controls: kind (`gradients`, `weight_decay`, `sam`) -> arm that the claimants must beat too.
        matched: measures that are compared at equal training loss, along the checkpoints that
            `save_every` keeps; none without such.
        pictures: measures of the first seed alone, to be drawn: slices and planes of the loss.
        tuning_seeds: seeds by which values are chosen; they are not those of the study.
        smallest_ratio: a lower flatness matters from this part of the base's on.
        smallest_gain: a higher test accuracy, in [0, 1], matters from this difference on.
        task: `file.py:function` of the analyses, for models that flatkit does not know; by default
            the `task` of the trainings, where they have one.
        trainer: `file.py:function(folder, seed, settings)` that trains in place of flatkit and
            returns the path of its checkpoint.

    Raises:
        InvalidArgumentError: an arm, condition or control that cannot be; names what and why.
    """

    arms: Sequence[Arm]
    base: str = ""
    seeds: Sequence[int] = (0, 1, 2)
    title: str = ""
    train: Mapping[str, Any] = field(default_factory=dict)
    analyze: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    controls: Mapping[str, str] = field(default_factory=dict)
    matched: Sequence[str] = ("top_eigenvalues", "trace")
    pictures: Sequence[str] = ()
    tuning_seeds: int = 2
    smallest_ratio: float = 0.9
    smallest_gain: float = 0.002
    task: str = ""
    trainer: str = ""

    def __post_init__(self) -> None:
        """Check everything, before anything is trained."""
        self._check_shapes()
        names = [arm.name for arm in self.arms]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise InvalidArgumentError(f"two arms are named {repeated[0]!r}; give each a name")
        if len(names) < 2:
            raise InvalidArgumentError(f"a study needs two arms at least, got {names or 'none'}")
        object.__setattr__(self, "base", self.base or names[0])
        check_choice("base", self.base, names)
        # A number is how many: `seeds = 5` stands for 0 to 4.
        if isinstance(self.seeds, int):
            object.__setattr__(self, "seeds", range(check_count("seeds", self.seeds)))
        object.__setattr__(self, "seeds", tuple(self.seeds))
        for seed in self.seeds:
            check_count("seeds", seed, minimum=0)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InvalidArgumentError(f"seeds must be different whole numbers, got {self.seeds}")
        object.__setattr__(self, "conditions", self.conditions or {NO_CONDITION: {}})
        self._check_controls(names)
        check_count("tuning_seeds", self.tuning_seeds)
        if not 0 < check_fraction("smallest_ratio", self.smallest_ratio) < 1:
            raise InvalidArgumentError(
                "smallest_ratio must be between 0 and 1, e.g. 0.9 if a flatness that falls by a "
                f"tenth matters; got {self.smallest_ratio!r}"
            )
        check_positive("smallest_gain", self.smallest_gain)
        # Last, when names and shapes are known to be right: its messages name arms.
        self._check_runs()

    def _check_shapes(self) -> None:
        """Refuse what has another form than the documented one, and names that are no folders."""
        given: Any = self.conditions  # a file may hold anything
        tables = {name: getattr(self, name) for name in ("train", "analyze", "controls")}
        tables["conditions"] = given
        if isinstance(given, Mapping):
            conditions: Mapping[str, Any] = given
            tables |= {f"conditions.{name}": own for name, own in conditions.items()}
        for name, own in tables.items():
            if not isinstance(own, Mapping):
                raise InvalidArgumentError(
                    f"{name} must be a table of settings, [{name}], got {own!r}"
                )
        for name in ("title", "base", "task", "trainer"):
            if not isinstance(getattr(self, name), str):
                raise InvalidArgumentError(
                    f"{name} must be a text in quotes, got {getattr(self, name)!r}"
                )
        if self.conditions != {NO_CONDITION: {}}:
            _check_names("condition", self.conditions)
        _check_names("arm", [arm.name for arm in self.arms])
        seeds: Any = self.seeds
        if not isinstance(seeds, (int, Sequence)) or isinstance(seeds, str):
            raise InvalidArgumentError(
                f"seeds must be a whole number or a list of such, got {self.seeds!r}"
            )

    def _check_controls(self, names: Sequence[str]) -> None:
        for kind, arm in self.controls.items():
            check_choice("controls", kind, CONTROLS)
            check_choice(f"controls.{kind}", arm, names)
            if arm == self.base:
                raise InvalidArgumentError(
                    f"the control {kind} is the base {arm!r} itself; name an arm that differs from "
                    "it by what is controlled"
                )

    def _check_runs(self) -> None:
        """Build the settings of every training and analysis once, so that no fault waits hours."""
        AnalysisSettings().changed(self.analysis)
        for what in ("matched", "pictures"):
            if getattr(self, what):
                _check_measures(what, getattr(self, what))
        for what in ("task", "trainer"):
            if spec := getattr(self, what):
                file_of(spec, what)
        for condition, arm in product(self.conditions, self.arms):
            for variant in arm.variants():
                settings = self.training(condition, arm, self.seeds[0], variant)
                if spec := self.task_of(settings):
                    file_of(spec, "task")

    @property
    def analysis(self) -> dict[str, Any]:
        """The settings of every analysis."""
        return {"measures": _USUAL_MEASURES, **self.analyze}

    def analysis_of(self, seed: int) -> dict[str, Any]:
        """Return the settings of the analysis of a run, with what is drawn of the first seed."""
        more = self.pictures if seed == self.seeds[0] else ()
        return {**self.analysis, "measures": [*self.analysis["measures"], *more]}

    @property
    def claimants(self) -> list[str]:
        """The arms of which it is asked whether they end flatter and generalise."""
        # SAM is a control and a claimant as well: it is asked too whether it ends flatter.
        only = {arm for kind, arm in self.controls.items() if kind != "sam"}
        return [arm.name for arm in self.arms if arm.name != self.base and arm.name not in only]

    def training(
        self, condition: str, arm: Arm, seed: int, variant: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the settings of one training.

        Raises:
            InvalidArgumentError: they cannot be; the message names the arm.
        """
        given = {**self.train, **self.conditions[condition], **arm.settings, **variant}
        if self.trainer:
            return {**given, "seed": seed}
        where = f"arm {arm.name!r}" + (f" in condition {condition!r}" if condition else "")
        known = [item.name for item in fields(TrainingConfig)]
        for name in given:
            if name not in known or name == "seed":
                hint = "; seeds are those of the study" if name == "seed" else nearest(name, known)
                raise InvalidArgumentError(f"{where} has an unknown setting {name!r}{hint}")
        if arm.tune and not given.get(_VALIDATION):
            raise InvalidArgumentError(
                f"{where} is tuned, which needs a validation split: set {_VALIDATION} in [train], "
                f"e.g. 300, got {given.get(_VALIDATION, 0)}; the test set never chooses"
            )
        try:
            # On the CPU by default: runs go side by side, a process and a thread each.
            whole: dict[str, Any] = {"device": "cpu", **given, "seed": seed}
            config = TrainingConfig(**whole)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{where}: {error}") from error
        return config.to_dict()

    @property
    def files(self) -> dict[str, str]:
        """The files of the user's code that is run, with their SHA-256; not what they import."""
        tables = [self.train, *self.conditions.values(), *(arm.settings for arm in self.arms)]
        tables += [variant for arm in self.arms for variant in arm.variants()]
        of_training = [] if self.trainer else [own["task"] for own in tables if own.get("task")]
        named = [spec for spec in (self.task, self.trainer, *of_training) if spec]
        return {str(file_of(spec, "task")): file_digest(spec, "task") for spec in named}

    def task_of(self, settings: Mapping[str, Any]) -> str:
        """Return the task by which a run is analyzed; empty where its checkpoint names all.

        Args:
            settings: of its training, as of `training`.
        """
        return self.task or ("" if self.trainer else settings.get("task") or "")

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain data."""
        # Through JSON, so that a study compares with what its folder holds.
        return json.loads(json.dumps(asdict(self), default=list))

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """Return which settings differ from an earlier study; more seeds and more arms may come.

        Args:
            earlier: its `to_dict`, and its `files` where these are known.

        >>> study = Study(arms=[Arm("sgd"), Arm("sam", {"optimizer": "sam"})])
        >>> study.differences({**study.to_dict(), "smallest_ratio": 0.5})
        ['smallest_ratio: 0.5 there, 0.9 here']
        """
        own, found = self.to_dict(), list[str]()
        earlier = {"pictures": [], **earlier}  # an earlier version had none
        for file, digest in self.files.items():
            there = earlier.get("files", {}).get(file, digest)
            if there != digest:
                found.append(f"{file} has changed: sha256 {there[:12]} there, {digest[:12]} here")
        for name, value in own.items():
            there = earlier.get(name)
            # More seeds make no run of before another one.
            if name == "seeds" and there is not None and set(there) <= set(value):
                continue
            if name == "arms" and there is not None:
                here = {arm["name"]: arm for arm in value}
                changed = [arm["name"] for arm in there if here.get(arm["name"]) != arm]
                found += [f"arm {arm}" for arm in changed]
            elif there != value and name != "title":
                found.append(f"{name}: {there} there, {value} here")
        return found


def study_names() -> tuple[str, ...]:
    """Return the names of the studies that come along, sorted.

    >>> "digits" in study_names()
    True
    """
    return _SHIPPED.names()


def read_study(source: str | Path) -> Study:
    """Return the study of a TOML file, or one that comes along.

    Args:
        source: a path; a text without a folder and without `.toml` is the name of a study.

    Raises:
        InvalidArgumentError: no such file or study, not TOML, an unknown key, or settings that
            cannot be.

    >>> read_study("digits").base
    'sgd'
    """
    if _SHIPPED.is_name(source):
        check_choice("study", str(source), study_names())
    data = _SHIPPED.read(source)
    known = [item.name for item in fields(Study)]
    for name in data:
        if name not in known:
            raise InvalidArgumentError(
                f"{source} has an unknown key {name!r}{nearest(name, known)}; there are "
                f"{', '.join(known)}"
            )
    try:
        given: dict[str, Any] = {**data, "arms": _arms(data.get("arms", {}))}
        return Study(**given)
    except (InvalidArgumentError, TypeError) as error:
        raise InvalidArgumentError(f"{source}: {error}") from error


def _check_names(what: str, names: Iterable[Any]) -> None:
    """Refuse names that could not be those of folders beside the files of a study."""
    for name in names:
        plain = isinstance(name, str) and name.strip() and name.isprintable()
        if not plain or {"/", "\\"} & set(name) or name.startswith(".") or name in _TAKEN:
            raise InvalidArgumentError(
                f"{what} {name!r} must have a name that can be a folder in that of the study: no "
                f"slash, no dot in front, none of {', '.join(_TAKEN)}"
            )


def _check_measures(what: str, measures: Any) -> None:
    try:
        AnalysisSettings().changed({"measures": measures})
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{what}: {error}") from error


def _arms(tables: Any) -> list[Arm]:
    if not isinstance(tables, Mapping) or not all(isinstance(t, Mapping) for t in tables.values()):
        raise InvalidArgumentError("arms must be tables, [arms.NAME], with settings of a training")
    arms: list[Arm] = []
    for name, table in tables.items():
        settings = dict(table)
        tune = settings.pop("tune", {})
        if not isinstance(tune, Mapping) or not all(
            isinstance(v, list) and v for v in tune.values()
        ):
            raise InvalidArgumentError(
                f"tune of arm {name!r} must map settings to lists of values, e.g. "
                "tune = { rho = [0.05, 0.1] }"
            )
        arms.append(Arm(name, settings, tune))
    return arms
