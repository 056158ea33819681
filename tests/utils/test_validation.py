from __future__ import annotations

from pathlib import Path

import pytest

from scripts.utils.schemas import SCHEMAS
from scripts.utils.validation import DEEPEST, parse_json, read_json


@pytest.mark.parametrize("kind", SCHEMAS)
def test_json_that_is_nested_too_deeply_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    """At every depth: somewhat below the one at which Python's own reader gives up, the walk over the schema would."""
    path = tmp_path / "x.json"
    for depth in (DEEPEST + 1, 300, *range(900, 1010, 10), 10_000, 100_000):
        for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth):
            for around in ("{}", '{{"training": {}}}', '{{"labels": {{"a": {}}}}}', '{{"license": {}}}'):
                path.write_text(around.format(text))
                with pytest.raises(ValueError, match=r"x\.json: expected") as error:
                    read_json(path, kind)
                assert error.value.__cause__ is None
                assert "\n" not in str(error.value)


def test_depth_counts_lists_and_objects_in_one_another() -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST, "x", "datalist")
    wide = '{"training": [' + ", ".join(['{"image": "a", "more": [[1], {"b": [2]}]}'] * 1000) + "]}"
    assert len(parse_json(wide, "x", "datalist")["training"]) == 1000
