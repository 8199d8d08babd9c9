"""Whether a launcher started several processes of this command, and which of them speaks."""

import os

from flatkit.errors import InvalidArgumentError


def is_launched() -> bool:
    """Whether this is one of several processes.

    >>> is_launched()
    False
    """
    # torchrun sets both; one process has nobody to share with.
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def speaks() -> bool:
    """Whether this process prints and writes: the only one, or the first.

    >>> speaks()
    True
    """
    return not is_launched() or os.environ["RANK"] == "0"


def refuse_launcher(command: str | None) -> None:
    """Refuse a launcher of several processes for a command that runs in one.

    Raises:
        InvalidArgumentError: there is one.
    """
    if is_launched():
        raise InvalidArgumentError(
            f"flatkit {command} runs in one process, and torchrun started "
            f"{os.environ['WORLD_SIZE']}; start it without"
        )
