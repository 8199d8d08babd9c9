"""A name for every result of a report, and names that can be shown."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

from flatkit.results.result import Result

_TELLING = ("rho", "geometry", "split")
"""Settings by which results of one measure are told apart."""


def names_of(results: Sequence[Result]) -> dict[str, Result]:
    """Return the results by name: that of the measure, and what tells several of one apart.

    >>> found = [Result("R1", 1.0, settings={"rho": rho}) for rho in (0.1, 0.2)]
    >>> losses = [Result("loss", 1.0, settings={"split": split}) for split in ("train", "test")]
    >>> list(names_of([*losses, *found]))
    ['loss', 'loss[split=test]', 'R1[rho=0.1]', 'R1[rho=0.2]']
    """
    named: dict[str, Result] = {}
    for result in results:
        # Only what differs among results of one measure is told: one radius needs no name.
        own = [other for other in results if other.measure == result.measure]
        differing = [
            key for key in _TELLING if len({str(other.settings.get(key)) for other in own}) > 1
        ]
        parts = [
            f"{key}={result.settings[key]}"
            for key in differing
            # `report["loss"]` is the loss of the training
            # data, with test data beside it or without.
            if key in result.settings and (key, result.settings[key]) != ("split", "train")
        ]
        name = f"{result.measure}[{', '.join(parts)}]" if parts else result.measure
        named[_free(name, named)] = result
    return named


def showable(name: str) -> str:
    r"""Return a name in which what cannot be written in a table, a page or a figure is spelt out.

    These are control characters, which also break SVG, and the halves of pairs by which Python
    tells bytes in names of files that are no UTF-8.

    >>> showable("gam, λ"), showable("a\x07b\n"), showable("caf\udce9")
    ('gam, λ', 'a\\x07b\\n', 'caf\\udce9')
    """
    return "".join(
        each.encode("unicode_escape").decode() if unicodedata.category(each) in _UNSEEN else each
        for each in name
    )


_UNSEEN = ("Cc", "Cs")
"""Categories of Unicode: control characters, and surrogates."""


def _free(name: str, taken: dict[str, Result]) -> str:
    """Return a name that is not taken; the second of one name is its `#2`."""
    number = Counter(key.partition(" #")[0] for key in taken)[name] + 1
    return name if number == 1 else f"{name} #{number}"
