from __future__ import annotations

from pathlib import Path

from scripts.data.description import describe_data
from scripts.utils.provenance import file_digest


def test_data_is_described_without_paths(tmp_path: Path) -> None:
    splits = tmp_path / "mine.json"
    splits.write_text("{}")
    expected = {"data": "acdc", "split": "mine.json", "split_sha256": file_digest(splits)}
    assert describe_data("acdc", tmp_path, splits) == expected
    assert describe_data("custom", splits) == {**expected, "data": "custom"}, "a datalist is its own split"
    assert describe_data("isic") == {"data": "isic", "split": "seeded", "split_sha256": None}
