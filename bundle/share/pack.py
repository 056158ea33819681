"""``python -m bundle pack``: a complete bundle of one data set and its weights, in the model zoo's format."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from bundle.share.card import Evaluation, front_matter, model_card, read_evaluation
from bundle.share.description import describe
from bundle.workflows import ROOT
from scripts.data.checks import check_class_values
from scripts.data.layouts.datalist import read_class_values, read_datalist
from scripts.data.readers import is_photograph
from scripts.handlers.weights import load_network_weights
from scripts.networks import deployed_network, network_options
from scripts.utils.files import write_text
from scripts.utils.licences import write_terms
from scripts.utils.provenance import file_digest, read_record, trained_options
from scripts.utils.tensors import load_state
from scripts.utils.validation import check, shown

__all__ = ["archive_name", "main", "write_archive"]

CONFIGS = (
    "recipe.json",
    "imagenet_encoder.json",
    "inference.json",
    "evaluate.json",
    "multi_gpu_train.json",
    "cpu.json",
    "semsim_variants.json",
    "logging.conf",
)
FOLDERS = ("methods", "ablations")
EPOCH = (1980, 1, 1, 0, 0, 0)  # time of every file in the archive: the earliest that ZIP supports


def main(
    dataset: str,
    weights: str,
    output: str,
    evaluation: str | Sequence[str] = (),
    version: str | None = None,
    changes: str | None = None,
    weights_url: str | None = None,
    data_source: str | None = None,
    data_license: str | None = None,
) -> None:
    """Pack a bundle that does not need this repository.

    Writes the folder ``semsim_<dataset>_segmentation/``, the archive ``semsim_<dataset>_segmentation_v<version>.zip``
    with the same content, and the archive's SHA-256. The same input gives the same bytes.

    Args:
        dataset: ``acdc``, ``promise12``, ``isic``, or a datalist JSON, whose ``labels`` are the names of the classes
            and whose ``label_values`` are their values in label files.
        weights: the network's weights, with their record in the same folder.
        output: folder for the results, created if missing. An earlier bundle of the same name is replaced.
        evaluation: one or more output folders of ``evaluate.json`` for these weights.
        version: version of the bundle; default: the one in ``configs/metadata.json``.
        changes: changes of that version; required if the changelog lacks it.
        weights_url: address of the weights, for ``large_files.yml``.
        data_source: description of the images of a datalist.
        data_license: licence of the images of a datalist; default: the bundle states that it is unknown.

    Raises:
        ValueError: if data set, weights and evaluations do not belong together, or an option does not fit them.
        FileNotFoundError: if a file is missing.
        FileExistsError: if the bundle's folder exists and is not a bundle.
    """
    evaluations = [read_evaluation(folder) for folder in ([evaluation] if isinstance(evaluation, str) else evaluation)]
    name, overlay, own = _dataset(dataset, Path(weights))
    record = _record(Path(weights), overlay, evaluations)
    if stated := {k: v for k, v in (("data_source", data_source), ("data_license", data_license)) if v}:
        if not dataset.lower().endswith(".json") or record.get("synthetic"):
            raise ValueError(f"{', '.join(stated)}: can be stated for a datalist of real images only.")
        own |= stated
    metadata, licenses = describe(own, overlay, record, evaluations, version, changes)
    check(metadata, "metadata", "the bundle's metadata")  # licence, source and changes as they were given
    folder = Path(output).resolve() / f"semsim_{name}_segmentation"
    if folder.exists() and not (folder / "configs" / "metadata.json").is_file():
        raise FileExistsError(f"'{folder}' exists and is not a bundle: remove it, or choose another --output.")

    folder.parent.mkdir(parents=True, exist_ok=True)
    archive = folder.parent / archive_name(folder.name, metadata["version"])
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        bundle = staging / folder.name
        _write_configs(bundle / "configs", overlay, record, trained_options(weights), metadata)
        _write_models(bundle / "models", Path(weights), record, metadata["data_source"], licenses)
        write_text(bundle / "large_files.yml", _large_files(weights_url, record))
        _write_code(bundle)
        _write_pages(bundle, metadata, licenses, overlay, record, evaluations)
        write_archive(bundle, staging / archive.name)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(bundle, folder)
        os.replace(staging / archive.name, archive)
        write_text(archive.with_name(f"{archive.name}.sha256"), f"{file_digest(archive)}  {archive.name}\n")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    print(f"{folder}\n{archive}, {archive.stat().st_size / 2**20:.1f} MiB, SHA-256 {file_digest(archive)}")


def archive_name(bundle: str, version: str) -> str:
    """Name of a bundle's archive, as in the model zoo."""
    return f"{bundle}_v{version}.zip"


def write_archive(folder: Path, target: Path) -> None:
    """Archive a folder; the same files give the same bytes on every machine and at any time."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}", EPOCH)
            entry.create_system = 3  # Unix, on every system
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())


def _dataset(dataset: str, weights: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Short name, config overlay and metadata of a data set."""
    known = sorted(path.stem for path in (ROOT / "configs" / "datasets").glob("*.json") if path.stem != "custom")
    is_datalist = dataset.lower().endswith(".json")
    if not is_datalist and dataset not in known:
        raise ValueError(f"dataset: expected one of {', '.join(known)} or a datalist JSON, found '{dataset}'.")
    source = "custom" if is_datalist else dataset
    overlay = _read_json(ROOT / "configs" / "datasets" / f"{source}.json")
    own_file = ROOT / "bundle" / "share" / "metadata" / f"{source}.json"
    own = _read_json(own_file) if own_file.is_file() else {}
    if not is_datalist:
        return dataset, overlay, own

    images = [record["image"] for records in read_datalist(dataset).values() for record in records]
    if not images:
        raise ValueError(f"{dataset}: the datalist names no image.")
    names, values = read_class_values(dataset)
    names |= (read_record(weights) or {}).get("class_names", {})  # the names in training and evaluation
    photographs = all(map(is_photograph, images))
    channels, classes = _shape(weights)
    check_class_values(classes, values)
    overlay |= {
        "output_ext": ".png" if photographs else overlay["output_ext"],
        "in_channels": channels,
        "num_classes": classes,
        "class_names": {str(c): names.get(str(c), str(c)) for c in range(1, classes)},
        "label_values": values,
    }
    if photographs:  # resized and validated like ISIC's
        isic = _read_json(ROOT / "configs" / "datasets" / "isic.json")
        overlay |= {key: isic[key] for key in ("anti_aliasing", "validation_images")}
    check(overlay, "training", dataset)
    name = re.sub(r"[^a-z0-9]+", "_", Path(dataset).stem.lower()).strip("_")
    return name, overlay, own


def _shape(weights: Path) -> tuple[int, int]:
    """Channels and classes of a network: by its record, of a U-Net from the first and the last of its tensors."""
    settings = (read_record(weights) or {}).get("settings", {})
    if "network in_channels" in settings and "network num_classes" in settings:
        return settings["network in_channels"], settings["network num_classes"]
    tensors = list(load_state(weights).values())
    if not tensors or tensors[0].ndim != 4 or tensors[-1].ndim < 1:
        raise ValueError(f"'{weights}' is not a network of this bundle: expected a 2D convolution as its first tensor.")
    return int(tensors[0].shape[1]), int(tensors[-1].shape[0])


def _record(weights: Path, overlay: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The weights' record, after checking that record, weights, data set and evaluations belong together."""
    load_network_weights(deployed_network(weights, overlay["in_channels"], overlay["num_classes"]), weights)
    record = read_record(weights)
    if record is None:
        raise FileNotFoundError(
            f"'{weights.with_suffix('.json')}' is missing: training writes this record of the weights' provenance, "
            "and weights without it cannot be packed."
        )
    if missing := sorted(
        {"data", "method", "image_size", "iteration", "seed", "labeled_cases", "code"} - record.keys()
    ):
        raise ValueError(f"'{weights.with_suffix('.json')}' lacks {', '.join(missing)}.")
    if record["data"] != overlay["layout"]:
        raise ValueError(
            f"'{weights}' was trained on data of layout '{record['data']}', expected '{overlay['layout']}'."
        )
    for item in evaluations:
        if item.weights_sha256 != record["sha256"]:
            raise ValueError(f"'{item.folder}' is the evaluation of other weights than '{weights}'.")
        expected = [*overlay["class_names"].values(), "mean"]
        if (found := [row["class"] for row in item.rows]) != expected:
            raise ValueError(f"'{item.folder}/summary.csv' has the classes {found}, expected {expected}.")
    return record


def _write_configs(
    folder: Path, overlay: Mapping[str, Any], record: Mapping[str, Any], trained: Mapping[str, Any], metadata: dict
) -> None:
    """The configs: train.json and inference.json with the data set's overlay and MONAI Label's merged in."""
    folder.mkdir(parents=True)
    for name in CONFIGS:
        shutil.copyfile(ROOT / "configs" / name, folder / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / "configs" / name, folder / name)
    train, inference = (
        ConfigParser.load_config_files([str(ROOT / "configs" / name) for name in names])
        for names in (("train.json", "monai_label.json"), ("inference.json", "monai_label_inference.json"))
    )
    cpu = _read_json(folder / "cpu.json")
    network = record.get("network", "UNet")
    if network == "EfficientUNet":
        encoder = _read_json(folder / "imagenet_encoder.json")
        del encoder["network_def"]["pretrained"]  # the weights that are trained on come from the bundle
        train |= encoder
        train["network_def"]["dropout"] = network_options(record)["dropout"]
    elif network != "UNet" and (method := _method_overlay(record)):
        # What is served is trained on: the method whose network this is, not SemSim.
        train = ConfigParser.load_config_files([str(ROOT / "configs" / "train.json"), str(folder / "methods" / method)])
        train |= _read_json(ROOT / "configs" / "monai_label.json")
        train["network_def"] |= {k: v for k, v in network_options(record).items() if k not in train["network_def"]}
    train |= overlay
    inference |= {key: value for key, value in overlay.items() if key in inference}
    # All three workflows use slices like those of the weights' training.
    train |= trained
    # Training goes on as these weights came about, by the recipe's objective unless the network has one of its own; the
    # supervised start is behind them.
    if record.get("settings", {}).get("weak_view mode") == "augmentation":
        recipe = _read_json(folder / "recipe.json")
        train |= {key: recipe[key] for key in ("weak_view", "teacher_decay")}
        if train["method"]["_target_"] == "scripts.methods.SemSim":
            train["method"] |= {key.removeprefix("method#"): recipe[key] for key in recipe if key.startswith("method#")}
    train["image_size"] = cpu["image_size"] = inference["image_size"]["default"] = record["image_size"]
    for name, config in (("train.json", train), ("inference.json", inference), ("cpu.json", cpu)):
        _write_json(folder / name, config)
    _write_json(folder / "metadata.json", metadata)


def _write_models(folder: Path, weights: Path, record: Mapping[str, Any], source: str, licenses: Sequence[str]) -> None:
    """Weights, their record and their terms."""
    folder.mkdir()
    shutil.copyfile(weights, folder / "model.pt")
    _write_json(folder / "model.json", {**record, "license": list(licenses)})
    write_terms(folder, source, licenses)


def _write_code(bundle: Path) -> None:
    """The configs' code and its licence."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    shutil.copytree(ROOT / "scripts", bundle / "scripts", ignore=ignored)
    shutil.copyfile(ROOT / "LICENSE", bundle / "LICENSE")


def _write_pages(
    bundle: Path,
    metadata: Mapping[str, Any],
    licenses: Sequence[str],
    overlay: Mapping[str, Any],
    record: Mapping[str, Any],
    evaluations: Sequence[Evaluation],
) -> None:
    """The card, with and without Hugging Face's front matter, and the documents that it links to."""
    card = model_card(bundle.name, metadata, overlay, record, evaluations, _method_overlay(record))
    (bundle / "docs").mkdir()
    for page in _pages(card):
        source, target = (folder / "docs" / page for folder in (ROOT, bundle))
        if page.endswith(".md"):  # links to sections that this card lacks, and to scripts, become text
            text = source.read_text(encoding="utf-8")
            write_text(target, re.sub(r"\[([^\]]+)\]\((?:README\.md#[^)]+|[\w.-]+\.py)\)", r"\1", text))
        else:
            shutil.copyfile(source, target)
    write_text(bundle / "docs" / "README.md", card)
    write_text(bundle / "README.md", front_matter(licenses) + card)


def _pages(card: str) -> list[str]:
    """The documents that a card mentions, and those that they link to."""
    found = list(dict.fromkeys(re.findall(r"`docs/([\w.-]+)`", card)))
    for page in found:  # the list grows in the loop
        text = (ROOT / "docs" / page).read_text(encoding="utf-8") if page.endswith(".md") else ""
        links = dict.fromkeys(re.findall(r"\]\(([\w.-]+\.(?:md|txt|png))[)#]", text))
        found += [link for link in links if link not in (*found, "README.md")]
    return found


def _large_files(url: str | None, record: Mapping[str, Any]) -> str:
    """The list of files that the model zoo downloads; it stores files of up to 25 MB itself."""
    if url is None:
        return "# All files are in the bundle.\nlarge_files: []\n"
    if not re.fullmatch(r"https?://[^\s\"\\]+", url):
        raise ValueError(f"weights_url: expected an address starting with https://, found {shown(url)}.")
    values = {"path": "models/model.pt", "url": url, "hash_val": record["sha256"], "hash_type": "sha256"}
    lines = [f'{key}: "{value}"' for key, value in values.items()]
    return "large_files:\n  - " + "\n    ".join(lines) + "\n"


def _method_overlay(record: Mapping[str, Any]) -> str | None:
    """The overlay that trains the record's method: its class, and for SemSim its fusion module."""
    for path in sorted((ROOT / "configs" / "methods").glob("*.json")):
        method = ConfigParser.load_config_files([str(ROOT / "configs" / "train.json"), str(path)])["method"]
        names = [part["_target_"].rpartition(".")[2] for part in (method, method.get("fusion")) if part]
        if names == [record[key] for key in ("method", "fusion") if key in record]:
            return path.name
    return None


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=4, ensure_ascii=False) + "\n")
