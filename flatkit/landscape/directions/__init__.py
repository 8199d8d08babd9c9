"""Kinds of directions by name, a file each; nothing here imports torch.

The settings, the help of the command, the job and the labels of pictures all read this one table.
A kind is a subclass of `kind.Kind`, or of `kind.ThroughKind` where one surface goes through all
checkpoints; its class is made without arguments. Another package adds one by an entry point:

    [project.entry-points."flatkit.directions"]
    axes = "my_package.directions:CoordinateAxes"
"""

from flatkit.errors import PluginError
from flatkit.landscape.directions.kind import Kind
from flatkit.registry import Registry

DIRECTIONS: Registry[type[Kind]] = Registry(
    "directions",
    {
        "random": "flatkit.landscape.directions.random:RandomDirections",
        "eigenvectors": "flatkit.landscape.directions.eigenvectors:Eigenvectors",
        "pca": "flatkit.landscape.directions.pca:PrincipalAxes",
        "checkpoints": "flatkit.landscape.directions.checkpoints:BetweenCheckpoints",
        "given": "flatkit.landscape.directions.given:GivenDirections",
    },
    group="flatkit.directions",
)
"""Name -> the class of the kind."""


def kind_named(name: str) -> Kind:
    """Return a kind of directions.

    Raises:
        InvalidArgumentError: no such name.
        PluginError: the package that it comes from cannot be imported, or names another thing.

    >>> kind_named("pca").help
    'principal axes of the checkpoints as a trajectory, through the last'
    """
    kind = DIRECTIONS.load(name)
    # What another package names may be anything, whatever the types here say.
    if not (isinstance(kind, type) and issubclass(kind, Kind)):  # pyright: ignore
        raise PluginError(f"the directions {name!r} must be a class of kind.Kind, got {kind!r}")
    return kind()
