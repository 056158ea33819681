from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import monai.bundle.scripts as monai_scripts
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.bundle import ConfigParser, onnx_export, push_to_hf_hub
from PIL import Image

from bundle.share.card import read_evaluation, results_table, weights_table
from bundle.share.pack import main as pack
from scripts.networks import UNet
from scripts.utils.licences import SYNTHETIC, licenses_line, terms_text
from scripts.utils.provenance import file_digest, read_record, trained_options

ROOT = Path(__file__).resolve().parents[3]

Trained = Callable[..., Path]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def folder_of(archive: Path) -> Path:
    return archive.with_name(archive.name.rpartition("_v")[0])


def evaluation(folder: Path, weights: Path, classes: tuple[str, ...], part: str = "val", mm: float = 1.0) -> Path:
    """An evaluation like one of evaluate.json, with given figures."""
    folder.mkdir()
    about = {"part": part, "weights_sha256": file_digest(weights), "code": "version 0"}
    (folder / "evaluation.json").write_text(json.dumps(about))
    rows = []
    for number, name in enumerate((*classes, "mean")):
        row: dict[str, Any] = {"class": name, "volumes": 5}
        for k, measure in enumerate(("dsc", "hd95_voxels", "assd_voxels")):
            row |= {f"{measure}_mean": 0.5 + k + number / 8, f"{measure}_std": 0.125}
        for measure in ("hd95", "assd"):
            row |= {f"{measure}_mm_mean": mm * row[f"{measure}_voxels_mean"], f"{measure}_mm_std": 0.25}
        rows.append({**row, "one_empty": 0, "both_empty": 0})
    with (folder / "summary.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_packing_twice_gives_the_same_bytes_and_their_digest(trained: Trained, tmp_path: Path) -> None:
    weights = trained()
    archives = []
    for name in ("a", "b", "b"):
        pack("acdc", str(weights), str(tmp_path / name))
        archives.append(next((tmp_path / name).glob("*.zip")))
    contents = [archive.read_bytes() for archive in archives]
    assert contents[0] == contents[1] == contents[2]
    version = read(ROOT / "configs" / "metadata.json")["version"]
    assert archives[0].name == f"semsim_acdc_segmentation_v{version}.zip"
    expected = f"{hashlib.sha256(contents[0]).hexdigest()}  {archives[0].name}\n"
    assert archives[0].with_name(f"{archives[0].name}.sha256").read_text() == expected
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(
        [archives[0].name, f"{archives[0].name}.sha256", "semsim_acdc_segmentation"]
    )


def test_archive_is_the_folder_without_what_depends_on_time_or_machine(packed: Path) -> None:
    folder = folder_of(packed)
    with zipfile.ZipFile(packed) as archive:
        entries = archive.infolist()
        assert all(archive.read(e) == (folder.parent / e.filename).read_bytes() for e in entries)
    names = [entry.filename for entry in entries]
    assert names == sorted(names)
    assert set(names) == {str(p.relative_to(folder.parent)) for p in folder.rglob("*") if p.is_file()}
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert not [name for name in names if "__pycache__" in name or "datasets" in name or "/bundle/" in name]


def test_configs_stand_alone_at_the_size_of_the_weights(packed: Path) -> None:
    configs = folder_of(packed) / "configs"
    train = read(configs / "train.json")
    overlay = read(ROOT / "configs" / "datasets" / "acdc.json")
    assert {key: train[key] for key in overlay} == overlay
    assert train["image_size"] == 48
    assert read(configs / "inference.json")["image_size"]["default"] == 48
    original = ConfigParser.load_config_files([str(ROOT / "configs" / n) for n in ("train.json", "monai_label.json")])
    assert original["train"]["handlers"][-1]["_target_"] == "scripts.monai_label.PublishWeights"
    changed = {*overlay, "image_size", *trained_options(folder_of(packed) / "models" / "model.pt")}
    assert {k: v for k, v in train.items() if k not in changed} == {
        k: v for k, v in original.items() if k not in changed
    }


def test_weights_of_the_recipe_are_trained_on_as_it_does(trained: Trained, tmp_path: Path) -> None:
    recipe, views = read(ROOT / "configs" / "recipe.json"), {"weak_view mode": "augmentation"}
    for settings, expected in (({}, None), (views, recipe)):
        pack("acdc", str(trained(settings=settings)), str(tmp_path))
        train = read(tmp_path / "semsim_acdc_segmentation" / "configs" / "train.json")
        original = expected or read(ROOT / "configs" / "train.json")
        assert (train["weak_view"], train["teacher_decay"]) == (original["weak_view"], original["teacher_decay"])
        weights = {key: value for key, value in train["method"].items() if key.startswith("lambda_")}
        assert weights == {key.removeprefix("method#"): original[key] for key in original if key.startswith("method#")}


@pytest.mark.parametrize(
    ("dataset", "channels", "classes", "extension", "words"),
    [
        ("acdc", 1, ["background", "RV", "Myo", "LV"], ".nii.gz", "Cardiac Diagnosis"),
        ("promise12", 1, ["background", "prostate"], ".mha", "PROMISE12"),
        ("isic", 3, ["background", "lesion"], ".png", "ISIC"),
    ],
)
def test_each_data_set_is_described(
    trained: Trained, tmp_path: Path, dataset: str, channels: int, classes: list[str], extension: str, words: str
) -> None:
    weights = trained(dataset, channels, len(classes), synthetic=False)
    scores = evaluation(tmp_path / "eval", weights, tuple(classes[1:]), mm=1.5)
    pack(dataset, str(weights), str(tmp_path), evaluation=str(scores))
    bundle = tmp_path / f"semsim_{dataset}_segmentation"
    metadata, inference = read(bundle / "configs" / "metadata.json"), read(bundle / "configs" / "inference.json")
    assert (inference["in_channels"], inference["num_classes"]) == (channels, len(classes))
    assert inference["output_ext"] == extension
    data = metadata["network_data_format"]
    assert data["inputs"]["image"]["modality"] == ("photograph" if dataset == "isic" else "MR")
    assert data["inputs"]["image"]["num_channels"] == channels == len(data["inputs"]["image"]["channel_def"])
    named = ["right ventricle of heart", "myocardium", "left ventricle of heart"] if dataset == "acdc" else classes[1:]
    assert data["outputs"]["pred"]["channel_def"] == {str(i): name for i, name in enumerate(["background", *named])}
    assert metadata["label_classes"].endswith(", ".join(f"{i}: {name}" for i, name in enumerate(classes)))
    assert words in metadata["data_source"]
    assert "synthetic" not in metadata["data_source"]

    assert metadata["eval_metrics"]["val_dsc_mean"] == 0.5 + (len(classes) - 1) / 8
    assert metadata["eval_metrics"][f"val_assd_mm_{classes[1]}"] == 2.5 * 1.5
    card = (bundle / "docs" / "README.md").read_text()
    assert f"| {classes[1]} | 0.500 ± 0.125 | 1.50 ± 0.12 | 2.50 ± 0.12 | 2.25 ± 0.25 | 3.75 ± 0.25 | 0 |" in card
    assert "These cases also chose the checkpoint" in card
    assert metadata["data_license"] in card
    assert metadata["data_license"] in (bundle / "models" / "LICENSE.txt").read_text()
    assert metadata["data_license"] == licenses_line(read(bundle / "models" / "model.json")["license"])
    assert metadata["references"][-1] in card
    assert not re.search(r"\$\w", card.replace("$import", "")), "a placeholder was left"


def test_synthetic_weights_are_marked_wherever_they_are_described(packed: Path) -> None:
    bundle = folder_of(packed)
    assert "synthetic images" in read(bundle / "configs" / "metadata.json")["data_source"]
    for page in ("README.md", "docs/README.md", "models/LICENSE.txt"):
        assert "synthetic images" in (bundle / page).read_text()
    assert read(bundle / "models" / "model.json")["synthetic"] is True
    assert "These weights have not been evaluated." in (bundle / "docs" / "README.md").read_text()


def test_versions_are_the_pins_and_the_version_can_be_chosen(trained: Trained, tmp_path: Path) -> None:
    weights = str(trained())
    with pytest.raises(ValueError, match=r"version 9\.9\.9 is not in the changelog"):
        pack("acdc", weights, str(tmp_path), version="9.9.9")
    known = read(ROOT / "configs" / "metadata.json")["version"]
    for version in (None, known):
        with pytest.raises(ValueError, match=rf"version {re.escape(known)} is already in the changelog"):
            pack("acdc", weights, str(tmp_path), version=version, changes="more patients")
    assert list(tmp_path.iterdir()) == []
    pack("acdc", weights, str(tmp_path), version="9.9.9", changes="more patients")
    metadata = read(tmp_path / "semsim_acdc_segmentation" / "configs" / "metadata.json")
    assert metadata["changelog"]["9.9.9"] == "more patients"
    assert (tmp_path / "semsim_acdc_segmentation_v9.9.9.zip").is_file()
    pins = (ROOT / "requirements.txt").read_text().splitlines()
    for package, version in (metadata["required_packages_version"] | metadata["dicom_packages_version"]).items():
        assert f"{package}=={version}" in pins


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    """A datalist of photographs with classes."""
    for name in ("a", "b"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{name}.png")
    path = tmp_path / "Knee Photos.json"
    entries = [{"image": "a.png", "label": "b.png"}]
    path.write_text(json.dumps({"training": entries, "labels": {"0": "background", "1": "bone"}}))
    return path


CC = "CC BY-NC-SA 4.0: attribution, non-commercial, share alike"
OPEN = ["not stated; ask the studies' owner before any use", CC]


@pytest.mark.parametrize(
    ("record", "stated", "expected", "license_name"),
    [
        ({}, None, ["not stated"], "terms-of-the-data"),
        ({}, "CC BY-NC 4.0", ["CC BY-NC 4.0"], None),
        ({"license": CC}, None, [CC], None),
        ({"license": CC}, "CC0", ["CC0", CC], "terms-of-the-data-and-cc-by-nc-sa-4.0"),
        ({"license": OPEN}, None, ["not stated", CC], "terms-of-the-data-and-cc-by-nc-sa-4.0"),
        ({"license": OPEN}, "CC0", ["CC0", CC], "terms-of-the-data-and-cc-by-nc-sa-4.0"),
        ({"license": OPEN}, CC, [CC], None),
        ({"license": CC, "synthetic": True}, None, [SYNTHETIC, CC], "apache-2.0-and-cc-by-nc-sa-4.0"),
    ],
)
def test_terms_of_data_and_of_earlier_weights_are_stated_wherever_terms_stand(
    trained: Trained,
    datalist: Path,
    tmp_path: Path,
    record: dict[str, Any],
    stated: str | None,
    expected: list[str],
    license_name: str | None,
) -> None:
    weights = trained("custom", 3, 3, **{"synthetic": False, **record})
    pack(str(datalist), str(weights), str(tmp_path), data_license=stated)
    bundle = tmp_path / "semsim_knee_photos_segmentation"
    terms = read(bundle / "configs" / "metadata.json")["data_license"]
    for text in (
        terms,
        licenses_line(read(bundle / "models" / "model.json")["license"]),
        *((bundle / page).read_text() for page in ("models/LICENSE.txt", "docs/README.md", "README.md")),
    ):
        assert all(part in text for part in expected)
        assert ("not stated" in text) is (expected[0] == "not stated")
    front = (bundle / "README.md").read_text().split("---")[1].splitlines()
    assert (f"license_name: {license_name}" in front) is (license_name is not None)
    assert ("license: other" in front) is (license_name is not None)
    # packed weights can be packed again with the same terms
    pack(str(datalist), str(bundle / "models" / "model.pt"), str(tmp_path / "again"))
    again = tmp_path / "again" / bundle.name
    assert read(again / "configs" / "metadata.json")["data_license"] == terms


@pytest.mark.parametrize(
    ("suffix", "channels", "modality"),
    [
        (".nii", ["image"], "n/a"),
        (".nii", ["channel 0", "channel 1", "channel 2"], "n/a"),
        (".png", ["image"], "photograph"),
    ],
)
def test_nothing_is_said_of_the_modality_of_volumes_of_ones_own(
    trained: Trained, tmp_path: Path, suffix: str, channels: list[str], modality: str
) -> None:
    for name in ("a", "b"):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 8), np.uint8)), str(tmp_path / f"{name}{suffix}"))
    entries = [{"image": f"a{suffix}", "label": f"b{suffix}"}]
    source = tmp_path / "own.json"
    source.write_text(json.dumps({"training": entries, "labels": {"0": "background", "1": "bone"}}))
    pack(str(source), str(trained("custom", len(channels), 2, synthetic=False)), str(tmp_path / "out"))
    metadata = read(tmp_path / "out" / "semsim_own_segmentation" / "configs" / "metadata.json")
    image = metadata["network_data_format"]["inputs"]["image"]
    assert image["modality"] == modality
    assert list(image["channel_def"].values()) == channels


def test_a_licence_that_was_left_open_can_be_stated_later(trained: Trained, datalist: Path, tmp_path: Path) -> None:
    pack(str(datalist), str(trained("custom", 3, 3, synthetic=False)), str(tmp_path))
    weights = tmp_path / "semsim_knee_photos_segmentation" / "models" / "model.pt"
    pack(str(datalist), str(weights), str(tmp_path / "b"), data_license="CC0", data_source="knees of two clinics")
    bundle = tmp_path / "b" / "semsim_knee_photos_segmentation"
    assert read(bundle / "models" / "model.json")["license"] == ["CC0"]
    assert (bundle / "models" / "LICENSE.txt").read_text() == terms_text("knees of two clinics", ["CC0"])
    for dataset, weights in (("acdc", trained(synthetic=False)), (str(datalist), trained("custom", 3, 3))):
        with pytest.raises(ValueError, match="data_license: can be stated for a datalist of real images only"):
            pack(dataset, str(weights), str(tmp_path / "c"), data_license="CC0")
    assert not (tmp_path / "c").exists()


def test_a_datalist_names_bundle_and_classes(trained: Trained, datalist: Path, tmp_path: Path) -> None:
    pack(str(datalist), str(trained("custom", 3, 3)), str(tmp_path))
    bundle = tmp_path / "semsim_knee_photos_segmentation"
    train = read(bundle / "configs" / "train.json")
    assert (train["in_channels"], train["num_classes"], train["anti_aliasing"]) == (3, 3, True)
    assert train["class_names"] == {"1": "bone", "2": "2"}
    assert str(tmp_path) not in (bundle / "configs" / "train.json").read_text()


def test_what_label_files_store_is_packed(trained: Trained, datalist: Path, tmp_path: Path) -> None:
    content = read(datalist)
    datalist.write_text(json.dumps({**content, "label_values": [0, 128, 255]}))
    weights = str(trained("custom", 3, 3))
    pack(str(datalist), weights, str(tmp_path))
    configs = tmp_path / "semsim_knee_photos_segmentation" / "configs"
    for name in ("train.json", "inference.json"):
        assert read(configs / name)["label_values"] == [0, 128, 255]
    datalist.write_text(json.dumps({**content, "label_values": [0, 255]}))
    with pytest.raises(ValueError, match=r"label_values: expected one value for each of the 3 classes"):
        pack(str(datalist), weights, str(tmp_path))


CODE = "$__import__('pathlib').Path('executed').touch()"


@pytest.mark.parametrize("text", [CODE, "%/etc/hostname", "@network", "a\nb", "a@#b", "L#4", "", {"_target_": "x"}])
def test_foreign_text_that_a_config_would_execute_is_refused(
    trained: Trained, datalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    content = read(datalist)
    sound, output = trained("custom", 3, 3, synthetic=False), tmp_path / "out"
    datalist.write_text(json.dumps({**content, "labels": {"0": "background", "1": text}}))
    with pytest.raises(ValueError, match=r"Knee Photos\.json: labels: .*expected names by class"):
        pack(str(datalist), str(sound), str(output))
    datalist.write_text(json.dumps({**content, "label_values": text or [text]}))
    with pytest.raises(ValueError, match=r"Knee Photos\.json: label_values: "):
        pack(str(datalist), str(sound), str(output))
    datalist.write_text(json.dumps(content))
    for key in ("image_size", "license", "method", "code"):
        if text == "L#4" and key in ("license", "code"):  # a licence may contain a link to a part of a page
            continue
        weights = trained("custom", 3, 3, **{key: text})
        with pytest.raises(ValueError, match=rf"model\.json: {key}: expected"):
            pack(str(datalist), str(weights), str(output))
    if isinstance(text, str) and text not in ("", "L#4"):
        for option in ("data_license", "data_source"):
            with pytest.raises(ValueError, match=rf"metadata: {option}: expected one line"):
                pack(str(datalist), str(sound), str(output), **{option: text})
        with pytest.raises(ValueError, match=r"changelog: .*expected one line"):
            pack(str(datalist), str(sound), str(output), version="9.9.9", changes=text)
    assert not output.exists()
    assert not (tmp_path / "executed").exists()


def test_an_evaluation_that_is_none_is_refused(trained: Trained, tmp_path: Path) -> None:
    weights = trained()
    folder = evaluation(tmp_path / "eval", weights, ("RV", "Myo", "LV"))
    summary, about = folder / "summary.csv", folder / "evaluation.json"
    sound = summary.read_text()
    for text, words in (
        (sound.replace("0.5,", "nan,", 1), r"summary\.csv: row 1: expected a number as dsc_mean, found 'nan'"),
        (sound.splitlines()[0], "expected a number as volumes, found None"),
        ("", "expected a number as volumes, found None"),
        (sound.replace("dsc_mean", "dice"), "expected a number as dsc_mean, found None"),
    ):
        summary.write_text(text)
        with pytest.raises(ValueError, match=words):
            pack("acdc", str(weights), str(tmp_path / "out"), evaluation=str(folder))
    summary.write_text(sound)
    about.write_text(json.dumps({**read(about), "part": CODE}))
    with pytest.raises(ValueError, match=r"evaluation\.json: part: expected a name"):
        pack("acdc", str(weights), str(tmp_path / "out"), evaluation=str(folder))


def test_a_datalist_without_an_image_is_refused(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"training": []}))
    with pytest.raises(ValueError, match=r"list\.json: the datalist names no image"):
        pack(str(tmp_path / "list.json"), str(trained("custom", 3, 3)), str(tmp_path / "out"))


def test_weights_can_be_named_by_their_address(trained: Trained, tmp_path: Path) -> None:
    weights = trained()
    pack("acdc", str(weights), str(tmp_path), weights_url="https://example.org/model.pt")
    yaml = pytest.importorskip("yaml")
    listed = yaml.safe_load((tmp_path / "semsim_acdc_segmentation" / "large_files.yml").read_text())
    assert listed == {
        "large_files": [
            {
                "path": "models/model.pt",
                "url": "https://example.org/model.pt",
                "hash_val": hashlib.sha256(weights.read_bytes()).hexdigest(),
                "hash_type": "sha256",
            }
        ]
    }


def test_what_does_not_belong_together_is_refused(trained: Trained, tmp_path: Path) -> None:
    weights, other = trained(), trained(seed=1)
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="expected one of acdc, isic, promise12 or a datalist JSON, found 'brats'"):
        pack("brats", str(weights), str(output))
    with pytest.raises(ValueError, match="it has 4 classes, the network 2"):
        pack("promise12", str(weights), str(output))
    with pytest.raises(ValueError, match="layout 'isic', expected 'acdc'"):
        pack("acdc", str(trained("isic")), str(output))
    torch.save({name: value + 1 for name, value in UNet().state_dict().items()}, other)
    with pytest.raises(ValueError, match=r"model\.json: is the record of other weights"):
        pack("acdc", str(other), str(output))
    foreign = evaluation(tmp_path / "eval", other, ("RV", "Myo", "LV"))
    with pytest.raises(ValueError, match="is the evaluation of other weights"):
        pack("acdc", str(weights), str(output), evaluation=str(foreign))
    with pytest.raises(FileNotFoundError, match=r"nothing/evaluation\.json' does not exist"):
        pack("acdc", str(weights), str(output), evaluation=str(tmp_path / "nothing"))
    assert not output.exists()
    (output / "semsim_acdc_segmentation" / "mine").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="is not a bundle"):
        pack("acdc", str(weights), str(output))
    assert [path.name for path in output.iterdir()] == ["semsim_acdc_segmentation"]


def test_weights_at_hand_are_described_by_their_own_files() -> None:
    models, card = ROOT / "models", (ROOT / "docs" / "README.md").read_text()
    record, scores = read_record(models / "model.pt"), read_evaluation(models / "evaluation")
    assert record is not None
    assert scores.weights_sha256 == record["sha256"]
    assert weights_table(record) in card
    assert results_table(scores) in card
    metadata = read(ROOT / "configs" / "metadata.json")
    assert (models / "LICENSE.txt").read_text() == terms_text(metadata["data_source"], record["license"])
    assert licenses_line(record["license"]) == metadata["data_license"]
    assert record["split_sha256"] == file_digest(ROOT / "scripts" / "data" / "splits" / record["split"])


def test_hugging_face_gets_a_card_with_the_terms_of_the_weights(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack("acdc", str(trained(synthetic=False)), str(tmp_path))
    bundle = tmp_path / "semsim_acdc_segmentation"
    front, card = re.fullmatch(r"---\n(.*?)\n---\n(.*)", (bundle / "README.md").read_text(), re.DOTALL).groups()
    assert "license: cc-by-nc-sa-4.0" in front.splitlines()
    assert "library_name: monai" in front.splitlines()
    assert "](" not in card, "MONAI copies docs/README.md to the root: no link leads anywhere from both"
    named = re.findall(r"`((?:docs|models|configs)/[\w./-]+)`", card)
    assert {"docs/method.md", "docs/monai-label.md", "docs/data_license.txt", "models/LICENSE.txt"} <= set(named)
    assert all((bundle / name).is_file() for name in named)

    class Hub:
        def __init__(self, token: str | None) -> None:
            self.uploaded: list[str] = []

        def create_repo(self, **options: Any) -> None:
            assert options["private"]

        def upload_folder(self, folder_path: str, **options: Any) -> str:
            return (Path(folder_path) / "README.md").read_text()

    monkeypatch.setattr(monai_scripts, "huggingface_hub", SimpleNamespace(HfApi=Hub))
    uploaded = push_to_hf_hub("someone/somewhere", bundle.name, str(tmp_path))
    assert uploaded.startswith("---\ntags:\n- monai\n- medical\nlibrary_name: monai\n")
    assert uploaded.endswith((bundle / "docs" / "README.md").read_text())


def test_monai_downloads_it_from_an_address(packed: Path, tmp_path: Path) -> None:
    name = folder_of(packed).name
    line = ["download", "--name", name, "--url", packed.as_uri(), "--bundle_dir", str(tmp_path), "--progress", "False"]
    done = subprocess.run([sys.executable, "-m", "monai.bundle", *line], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {p.relative_to(folder_of(packed)): p.read_bytes() for p in folder_of(packed).rglob("*") if p.is_file()}
    assert {p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*") if p.is_file()} == set(expected)
    assert all((tmp_path / name / path).read_bytes() == content for path, content in expected.items())


@pytest.mark.filterwarnings("ignore")
def test_onnx_export_gives_the_network_for_any_batch_and_image_size(packed: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    bundle = folder_of(packed)
    command = next(line for line in (bundle / "docs" / "README.md").read_text().splitlines() if " onnx_export " in line)
    options = dict(re.findall(r'--(\w+) "?([^"]+?)"?(?= --|$)', command))
    onnx_export(
        "network_def",
        str(tmp_path / "model.onnx"),
        str(bundle / options["ckpt_file"]),
        str(bundle / options["meta_file"]),
        str(bundle / options["config_file"]),
        input_shape=json.loads(options["input_shape"]),
        converter_kwargs=ConfigParser({"kwargs": f"${options['converter_kwargs']}"}).get_parsed_content("kwargs"),
    )
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    network = UNet().eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    for shape in ((1, 1, 48, 48), (3, 1, 64, 80)):
        image = torch.rand(shape)
        (found,) = session.run(["pred"], {"image": image.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, network(image).numpy(), atol=1e-4)
