from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from scripts.utils.files import files_below, replacing, update_digest, write_csv, write_text


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.csv"
    write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            assert path.read_text() == "old"
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_cannot_be_encoded_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_success_replaces_the_file_in_its_folder_which_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    for text in ("first\n", "zweite, über zwei\nZeilen\n"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
        assert list(path.parent.iterdir()) == [path]


def test_the_suffix_stays_for_writers_that_go_by_it(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".nii.gz")
        temporary.touch()
    with replacing(tmp_path / "a.png") as temporary:
        Figure(figsize=(1, 1)).savefig(temporary)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "a.png"]


def test_writers_of_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    texts = [str(number) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text(path, text), texts))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_larger_than_a_block_is_digested_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(256)) * 10_000)
    digest = hashlib.sha256(b"before")
    update_digest(digest, path)
    assert digest.hexdigest() == hashlib.sha256(b"before" + path.read_bytes()).hexdigest()


def test_linked_folders_are_searched_and_every_folder_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    for name in ("set/z/a.png", "set/z/.a.png", "set/.cache/a.png", "elsewhere/b.png", "elsewhere/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (root / "labels").symlink_to(elsewhere)
    (root / "more").symlink_to(elsewhere / "deep")  # in it already
    (root / "alias").symlink_to(root / "z")
    (elsewhere / "up").symlink_to(root)  # round and round
    (root / "b.png").symlink_to(elsewhere / "b.png")
    (root / "gone.png").symlink_to(tmp_path / "nowhere")
    found = [path.relative_to(root).as_posix() for path in files_below(root)]
    assert found == ["b.png", "gone.png", "labels/b.png", "labels/deep/c.png", "z/a.png"]


def test_a_folder_that_may_not_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shut").mkdir()
    scan = os.scandir

    def scandir(path: str) -> object:  # root may read everything
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"shut' cannot be read: Permission denied"):
        files_below(tmp_path)


def test_tables_round_numbers_and_leave_none_empty(tmp_path: Path) -> None:
    rows = [{"case": "a, b", "dsc": 1 / 3, "mm": None, "more": 1}, {"case": "c", "dsc": 1.0, "mm": 2}]
    write_csv(tmp_path / "a.csv", rows, ["case", "dsc", "mm"])
    assert (tmp_path / "a.csv").read_bytes() == b'case,dsc,mm\n"a, b",0.333333,\nc,1.0,2\n'
