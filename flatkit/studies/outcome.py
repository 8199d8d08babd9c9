"""What came out of a study: comparisons, choices, claims; in JSON and out, no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatkit.files.atomic import write_text_atomically
from flatkit.results.comparison import Comparison, Conditions
from flatkit.studies.claims import Claim, both, decide
from flatkit.studies.questions import questions
from flatkit.studies.settings import Study


@dataclass(frozen=True, repr=False)
class Outcome(Conditions):
    """What came out of a study.

    It shows itself: a line, tables in a notebook, `to_dataframe()` with a row for each number of
    each run, `.plot()` with the effects of the claims, and `.plot.NAME(condition=...)` with what a
    comparison draws.

    Attributes:
        study: its settings.
        comparisons: by condition; groups are arms, runs are seeds.
        along: by condition; groups are arms, runs are seeds and epochs.
        claims: with their verdicts.
        choices: condition -> arm -> the values that the validation split chose.
        diverged: condition -> run -> why.
        gradients: condition -> arm -> gradients of batches, mean over the seeds.
    """

    study: Study
    comparisons: Mapping[str, Comparison]
    along: Mapping[str, Comparison]
    claims: Sequence[Claim]
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    diverged: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    gradients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return a line: what was trained, and how many claims hold."""
        study, verdicts = self.study, [claim.verdict for claim in self.claims]
        words = {"holds": "hold", "fails": "fail", "cannot tell": "cannot be told"}
        told = ", ".join(f"{verdicts.count(v)} {word}" for v, word in words.items())
        several = f" in {len(study.conditions)} conditions" if len(study.conditions) > 1 else ""
        seeds = f"{len(study.seeds)} seed{'' if len(study.seeds) == 1 else 's'}"
        return (
            f"<Outcome of {len(study.arms)} arms with {seeds}{several}: of {len(verdicts)} claims "
            f"{told}>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what it says as plain data, without the reports."""
        return {
            "study": self.study.to_dict(),
            "claims": [claim.to_dict() for claim in self.claims],
            "choices": self.choices,
            "diverged": self.diverged,
            "gradients": self.gradients,
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write `claims.json` and a comparison for each condition into a folder."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        written = [write_text_atomically(Path(folder) / "claims.json", text)]
        for condition, comparison in self.comparisons.items():
            written.append(comparison.save(Path(folder) / condition / "report.json"))
        for condition, comparison in self.along.items():
            written.append(comparison.save(Path(folder) / condition / "along.json"))
        return written


def judged(
    study: Study,
    comparisons: Mapping[str, Comparison],
    along: Mapping[str, Comparison],
    diverged: Mapping[str, Mapping[str, str]],
) -> list[Claim]:
    """Return the verdict on every claim: each arm against the base and the controls.

    Args:
        study: what is asked.
        comparisons: by condition.
        along: by condition; measured on the way.
        diverged: condition -> run -> why.
    """
    asked = [
        one
        for condition, comparison in comparisons.items()
        for one in questions(
            study, condition, comparison, along.get(condition), diverged.get(condition, {})
        )
    ]
    decided = decide(asked)
    claims = [*decided]
    for condition in comparisons:
        for arm in study.claimants:
            own = [
                claim
                for claim, one in zip(decided, asked, strict=True)
                if (one.condition, one.arm, one.against) == (condition, arm, study.base)
                # Along the way is another question than at the
                # end, which "flatter and generalises" is about.
                and " at training loss " not in one.claim
            ]
            claims.append(both(condition, arm, own))
    return claims
