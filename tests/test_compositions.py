"""Whatever is put together is measured right or refused, and nothing of the user's changes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compositions import CHOICES, Composition, judge

pytestmark = pytest.mark.long

COMPOSITIONS = st.builds(
    Composition, **{name: st.sampled_from(list(among)) for name, among in CHOICES.items()}
)


@given(COMPOSITIONS)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_every_composition_is_right_or_refused(composition):
    verdict = judge(composition, ("loss", "gradient_norm", "top_eigenvalues"))
    assert not verdict.is_fault, f"{verdict.kind}: {verdict.words}"
