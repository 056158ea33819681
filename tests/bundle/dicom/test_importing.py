"""``python -m bundle import``: its files and messages, which contain no patient data."""

from __future__ import annotations

import csv
import gzip
import json
import os
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from bundle.__main__ import main as bundle
from scripts.data.dicom.find import find_volumes
from scripts.data.dicom.segmentation import SegmentationWriter
from scripts.data.layouts.datalist import read_datalist
from tests.dicom_study import OBLIQUE, SECRETS, Study, archive, write


def run(*arguments: str) -> int:
    """Exit status of the command."""
    try:
        bundle(["import", *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def content(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw


def test_volumes_are_written_where_simpleitk_sees_the_series(tmp_path: Path) -> None:
    study = Study(turn=OBLIQUE, phases=1)
    write(study.cine(), tmp_path / "in")
    assert run("--source", str(tmp_path / "in"), "--output", str(tmp_path / "out")) == 0
    image = next((tmp_path / "out" / "images").iterdir())
    nifti = nib.load(image)
    np.testing.assert_array_equal(np.asarray(nifti.dataobj), study.volumes[0])
    np.testing.assert_allclose(nifti.affine, study.affine, atol=1e-4)  # 32-bit numbers
    assert nifti.header.get_xyzt_units()[0] == "mm"
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "in")))
    series, written = reader.Execute(), sitk.ReadImage(str(image))
    for of in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(written, of)(), getattr(series, of)(), atol=1e-4)


def test_nothing_of_the_patient_is_written_or_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "Phantomson, Quendolin"
    archive(source)
    (source / "Phantomson.txt").write_text("not an image")
    (source / "Phantomson.dcm").write_bytes(bytes(128) + b"DICM" + bytes(40))
    assert run("--source", str(source), "--output", str(tmp_path / "out"), "--phase", "ed,es") == 1  # a damaged file
    said = "".join(capfd.readouterr())
    assert said.count("skipped: ") == 5
    assert said.count("refused: ") == 1
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == 3
    for secret in SECRETS:
        assert secret not in said
        assert not any(secret.encode() in content(path) or secret in str(path.name) for path in written)
    assert not list(tmp_path.glob("*.csv"))


def test_the_datalist_names_images_and_patients(tmp_path: Path) -> None:
    for i in range(2):
        archive(tmp_path / "in" / str(i), seed=i)  # two studies, one patient
    run("--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--phase", "all")
    records = read_datalist(tmp_path / "out" / "datalist.json")["train"]
    assert len(records) == 8
    assert len({record["case"] for record in records}) == 1


def test_the_table_maps_names_is_private_and_keeps_names(tmp_path: Path) -> None:
    study = archive(tmp_path / "in")
    options = ("--source", str(tmp_path / "in"), "--phase", "ed", "--table", str(tmp_path / "table.csv"))
    names = []
    for out in ("a", "b"):
        run(*options, "--output", str(tmp_path / out))
        names.append(os.listdir(tmp_path / out / "images"))
    assert names[0] == names[1]
    run(*options[:-2], "--output", str(tmp_path / "c"))
    assert os.listdir(tmp_path / "c" / "images") != names[0]
    assert stat.S_IMODE((tmp_path / "table.csv").stat().st_mode) == 0o600
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()[1:]))
    row = next(row for row in rows if row["name"] == names[0][0].partition(".")[0])
    assert (row["study_uid"], row["series_uid"]) == (study.study, study.uid_of("cine"))
    assert Path(row["file"]).parent == tmp_path / "in"
    (tmp_path / "table.csv").write_text("name\n")
    assert run(*options, "--output", str(tmp_path / "d")) == 1


def test_the_table_keeps_the_names_of_earlier_imports(tmp_path: Path) -> None:
    studies = [archive(tmp_path / folder, seed=seed) for seed, folder in enumerate(("one", "two"))]
    for number, folder in enumerate(("one", "two", "one")):
        options = ("--output", str(tmp_path / f"{number}"), "--phase", "ed", "--table", str(tmp_path / "table.csv"))
        assert run("--source", str(tmp_path / folder), *options) == 0
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()[1:]))
    assert len({row["name"] for row in rows}) == len(rows)
    for study in studies:
        (row,) = [row for row in rows if row["series_uid"] == study.uid_of("cine") and row["patient"]]
        assert row["study_uid"] == study.study


def test_photographs_are_written_as_png(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    write([Study().photograph(array)], tmp_path / "in")
    run("--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--photographs", "True")
    picture = next((tmp_path / "out" / "images").iterdir())
    assert picture.suffix == ".png"
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "nowhere"}, "error: source: expected a folder, found 'nowhere'."),
        ({"output": "in"}, "error: output 'in' is not empty: choose a new folder."),
        ({"phase": "late"}, "error: phase: expected all, a number from 1, ed or es, or several of them, found 'late'."),
        (
            {},
            "4 phases, trigger times 0 to 96.1 ms: choose by --phase all, a number from 1 to 4, or ed,es.",
        ),
        ({"series": "nothing like it"}, "error: there is nothing to segment in 'in'."),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    archive(tmp_path / "in")
    options = {"source": "in", "output": "out", **change}
    assert run(*(word for key, value in options.items() for word in (f"--{key}", value))) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)
    assert not (tmp_path / "out").exists()


def test_the_datalist_says_what_was_written(tmp_path: Path) -> None:
    write(Study(phases=1).cine(), tmp_path / "in")
    run("--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    entries = json.loads((tmp_path / "out" / "datalist.json").read_text())["training"]
    assert [set(entry) for entry in entries] == [{"image", "case"}]


@pytest.mark.parametrize("by", ["seg", "nifti"])
def test_labels_lie_on_their_images(tmp_path: Path, by: str, capsys: pytest.CaptureFixture[str]) -> None:
    study = archive(tmp_path / "in", turn=OBLIQUE)
    study.labels[2][..., 1] = 0  # a slice that the SEG omits
    options = ["--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--phase", "ed,es"]
    if by == "seg":
        acdc = json.loads((Path(__file__).parents[3] / "configs" / "datasets" / "acdc.json").read_text())
        codes = {key: acdc[key] for key in ("class_names", "class_codes", "class_colors")}
        volume = find_volumes(tmp_path / "in", phase=3).volumes[0]
        SegmentationWriter(tmp_path / "no weights", 4, **codes)(study.labels[2], volume, tmp_path / "in" / "seg")
        options += ["--dataset", "acdc"]
    else:
        (tmp_path / "labels").mkdir()
        name = f"{study.uid_of('cine')}_seg.nii.gz"
        nib.save(nib.Nifti1Image(study.labels[2], study.affine), tmp_path / "labels" / name)
        options = [*options[:-1], "es", "--labels", str(tmp_path / "labels")]
    assert run(*options) == 0
    assert "1 with a label" in capsys.readouterr().out
    records = read_datalist(tmp_path / "out" / "datalist.json")["train"]
    (labeled,) = [record for record in records if "label" in record]
    assert "phase03" in labeled["image"]
    label, image = nib.load(labeled["label"]), nib.load(labeled["image"])
    np.testing.assert_array_equal(np.asarray(label.dataobj), study.labels[2])
    np.testing.assert_array_equal(label.affine, image.affine)


def test_a_label_named_after_several_volumes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both phases lie on one grid, and the label is of one of them."""
    study = archive(tmp_path / "in")
    (tmp_path / "labels").mkdir()
    name = f"{study.uid_of('cine')}.nii.gz"
    nib.save(nib.Nifti1Image(study.labels[2], study.affine), tmp_path / "labels" / name)
    options = ("--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--phase", "ed,es")
    assert run(*options, "--labels", str(tmp_path / "labels")) == 1
    printed = capsys.readouterr().out
    assert printed.count("is named after a series with several volumes: name it after one of them.") == 2
    assert "0 with a label" in printed


def test_a_label_that_lies_elsewhere_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(phases=1)
    write(study.cine(), tmp_path / "in")
    (tmp_path / "labels").mkdir()
    moved = study.affine + np.eye(4)[:, [3, 1, 2, 0]] * 5
    nib.save(nib.Nifti1Image(study.labels[0], moved), tmp_path / "labels" / f"{study.uid_of('cine')}.nii.gz")
    options = ("--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert run(*options, "--labels", str(tmp_path / "labels")) == 1
    assert "label: its label and its images have different positions." in capsys.readouterr().out
