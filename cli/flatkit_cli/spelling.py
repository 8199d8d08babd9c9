"""What stands in the place of λ, ρ and ± on a stream whose encoding lacks them."""

import codecs
import json
import re
import sys
from io import TextIOWrapper

_NAME = "flatkit.spelt"
_WORDS = {
    "λ": "lambda",
    "ρ": "rho",
    "θ": "theta",
    "η": "eta",
    "τ": "tau",
    "Δ": "Delta",
    "∇": "grad ",
    "‖": "|",
    "∞": "inf",
    "±": "+-",
    "≥": ">=",
    "≤": "<=",
    "→": "->",
    "←": "<-",
    "×": "x",
    "²": "^2",
    "₁": "1",
    "₂": "2",
    "−": "-",
    "–": "-",
    "…": "...",
    "★": "*",
}


def spell_out() -> None:
    """Let stdout and stderr spell what their encoding lacks, where Python would raise.

    A console of Windows, a pipe there, and an old locale have no Greek letters; after an analysis
    of hours that must not cost its table. Names of files that are no UTF-8 are escaped, too.
    """
    codecs.register_error(_NAME, _spelt)
    for stream in (sys.stdout, sys.stderr):
        # What a test or a notebook has put there may be of any kind, and takes any text.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_NAME)


def in_any_encoding(text: str) -> str:
    r"""Return JSON in ASCII, so that no letter of it is spelt otherwise.

    >>> in_any_encoding('{"λ": "é"}')
    '{"\\u03bb": "\\u00e9"}'
    """
    return re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)


def json_here(text: str) -> str:
    """Return JSON as stdout can hold it without a loss."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    # Of names of files that are no UTF-8, Python keeps halves of pairs, which UTF-8 cannot hold.
    whole = encoding == "utf8" and not re.search("[\ud800-\udfff]", text)
    return text if whole else in_any_encoding(text)


def _spelt(error: UnicodeError) -> tuple[str, int]:
    """Spell what cannot be encoded; the handler of errors that `codecs` calls."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    words = [_WORDS.get(x) or x.encode("ascii", "backslashreplace").decode() for x in letters]
    return "".join(words), error.end
