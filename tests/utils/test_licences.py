from __future__ import annotations

import pytest

from scripts.utils.licences import join_terms, split_terms

BOTH = "CC BY 4.0; and of the weights that these began with: CC BY-NC 4.0"


@pytest.mark.parametrize(
    ("licences", "terms"),
    [
        (["CC BY 4.0"], "CC BY 4.0"),
        (["CC BY 4.0", "CC BY-NC 4.0"], BOTH),
        (["CC BY 4.0", "CC BY-NC 4.0", "CC BY 4.0", "CC BY-NC 4.0"], BOTH),
    ],
)
def test_each_licence_is_stated_once(licences: list[str], terms: str) -> None:
    assert join_terms(*licences) == terms
    assert split_terms(terms) == list(dict.fromkeys(licences))
