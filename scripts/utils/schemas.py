"""JSON schemas of external files, by kind; :mod:`scripts.utils.validation` checks files against them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["SCHEMAS"]

Schema = dict[str, Any]

_MARKUP = r"(?![$%@])(?![\s\S]*[$%@]#)"
_LINE = r"[^\x00-\x1f\x7f\ud800-\udfff]+\Z"
_HARMLESS = "one line that does not begin with $, % or @, which a config would execute or look up"

TEXT: Schema = {"type": "string", "pattern": f"^{_MARKUP}{_LINE}", "maxLength": 20000, "description": _HARMLESS}
NAME: Schema = {
    "type": "string",
    "pattern": rf"^{_MARKUP}(?!.*#){_LINE}",
    "maxLength": 200,
    "description": f"a name of {_HARMLESS}, and without #",
}
FILE: Schema = {"type": "string", "pattern": rf"^{_LINE}", "maxLength": 1000, "description": "the path of one file"}
CASE: Schema = {**FILE, "description": "the name of a case"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 10**12, "description": "a whole number from 0"}
NUMBER: Schema = {"type": "number", "minimum": -1e9, "maximum": 1e9, "description": "a number"}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1, "description": "a number from 0 to 1"}
VERSION: Schema = {"type": "string", "pattern": r"^[\w.+-]{1,50}\Z", "description": "a version, such as 0.2.0"}
SWITCH: Schema = {"type": "boolean", "description": "true or false"}
PATH: Schema = {
    "type": "string",
    "pattern": rf"^(?!.*::){_LINE}",
    "description": "a path without # and ::, which MONAI's configs take for the separator of their ids",
}
SHA256: Schema = {"type": "string", "pattern": r"^[0-9a-f]{64}\Z", "description": "a SHA-256, 64 hexadecimal digits"}
IMAGE_SIZE: Schema = {
    "type": "integer",
    "minimum": 16,
    "maximum": 4096,
    "description": "the side of a slice, a whole number of pixels in 16..4096",
}
PIXEL_SPACING: Schema = {
    "oneOf": [
        {"type": "null"},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1000},
        {"enum": ["aspect"]},
    ],
    "description": "the size of a pixel in mm, 'aspect' or null",
}
PERCENTILES: Schema = {
    "type": "array",
    "items": {"type": "number", "minimum": 0, "maximum": 100},
    "minItems": 2,
    "maxItems": 2,
    "uniqueItems": True,
    "description": "two percentiles in 0..100, the lower one first",
}
CLASSES: Schema = {
    "type": "integer",
    "minimum": 2,
    "maximum": 256,
    "description": "a whole number in 2..256, background included",
}
CLASS: Schema = {"pattern": r"^(0|[1-9]\d{0,2})\Z", "description": "the number of a class"}
LABEL_VALUES: Schema = {
    "type": "array",
    "items": NUMBER,
    "minItems": 2,
    "maxItems": 256,
    "uniqueItems": True,
    "description": "different numbers, one for each class",
}
SLICE_AXIS: Schema = {
    "enum": ["sagittal", "coronal", "axial", "thickest"],
    "description": "one of sagittal, coronal, axial, thickest",
}


LICENSE: Schema = {
    "oneOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 100}],
    "description": f"a licence or a list of them, each {_HARMLESS}",
}


def _or_null(schema: Schema) -> Schema:
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return {**schema, "type": [*kinds, "null"], "description": f"{schema['description']}, or null"}


def _object(title: str, required: Sequence[str] = (), **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties, "description": title}


def _list(title: str, items: Schema) -> Schema:
    return {"type": "array", "items": items, "description": title}


def _map(title: str, keys: Schema, values: Schema) -> Schema:
    return {"type": "object", "propertyNames": keys, "additionalProperties": values, "description": title}


_POSITIVE: Schema = {"type": "number", "minimum": 0, "maximum": 1e9, "description": "a number from 0"}
_CALIBRATION = _object(
    "the calibration, a JSON object",
    part=NAME,
    cases=COUNT,
    temperature={"type": "number", "minimum": 0.1, "maximum": 10, "description": "a number from 0.1 to 10"},
    dice=_map(
        "fits by class",
        CLASS,
        _object(
            "a fit from score to Dice",
            ["scores", "dices", "margin", "error", "cases", "values"],
            scores=_list("a list of numbers from 0 to 1", SHARE),
            dices=_list("a list of numbers from 0 to 1", SHARE),
            margin=_POSITIVE,
            error=SHARE,
            cases=COUNT,
            values=COUNT,
        ),
    ),
    images=_map(
        "ranges by feature",
        {
            "enum": ["dark", "middle", "bright", "roughness", "height_mm", "width_mm"],
            "description": "a feature of images",
        },
        {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2, "description": "two numbers, [low, high]"},
    ),
)

_NETWORK_SIZES = ("input_size", "rank", "width", "window", "decoder_width", "embed_dim")
_SIZE: Schema = {"type": "integer", "minimum": 1, "maximum": 4096, "description": "a whole number in 1..4096"}
_SIZES: Schema = {
    "type": ["array", "integer"],
    "items": {**_SIZE, "maximum": 1024, "description": "a whole number in 1..1024"},
    "maxItems": 12,
    "minimum": 1,
    "maximum": 48,
    "description": "a whole number in 1..48, or up to 12 in 1..1024",
}
_SHARES = {
    **SHARE,
    "type": ["array", "number"],
    "items": SHARE,
    "maxItems": 12,
    "description": "from 0 to 1, or a list",
}
# Only what a network is built from; the others are there to be read.
_SETTINGS: Schema = {
    "type": "object",
    "properties": {
        **{f"network {name}": _SIZE for name in (*_NETWORK_SIZES, "in_channels", "num_classes")},
        **{f"network {name}": _SIZES for name in ("channels", "depth", "depths", "heads")},
        **{f"network {name}": _SHARES for name in ("dropout", "drop_path")},
    },
    "description": "options of the training by name, a JSON object",
}

_ENTRY = {
    **_object(
        "an entry with an image's path",
        ["image"],
        image=FILE,
        label={
            **FILE,
            "type": ["string", "null", "array"],
            "items": _or_null(FILE),
            "minItems": 1,
            "maxItems": 255,
            "description": "the path of one file, null, or a list of them, the mask of each class",
        },
        case={**CASE, "type": ["string", "number"]},
        fold={"type": "integer", "minimum": 0, "description": "the number of a fold"},
        sha256=_map(
            "SHA-256 of image and label", {"enum": ["image", "label"], "description": "image or label"}, SHA256
        ),
    ),
    "type": ["object", "string"],
    "pattern": FILE["pattern"],
    "maxLength": FILE["maxLength"],
}
_ENTRIES = _list("a list of entries", _ENTRY)

SCHEMAS: dict[str, Schema] = {
    "datalist": {
        **_object(
            "a datalist",
            training=_or_null(_ENTRIES),
            validation=_or_null(_ENTRIES),
            test=_or_null(_ENTRIES),
            testing=_or_null(_ENTRIES),
            labels={
                "type": "object",
                "propertyNames": NAME,
                "additionalProperties": {
                    **NAME,
                    "type": ["string", "integer"],
                    "minimum": 0,
                    "maximum": 255,
                    "description": f'names by class, such as {{"1": "bone"}}, each {_HARMLESS}',
                },
                "description": 'names by class, such as {"1": "bone"}',
            },
            label_values=_or_null(LABEL_VALUES),
            slice_axis=SLICE_AXIS,
            file_ending={"type": "string", "pattern": r"^\.[A-Za-z0-9.]{1,10}\Z", "description": "a file's suffix"},
        ),
    },
    "folds": _list(
        "nnU-Net's list of folds",
        _object(
            "the cases of a fold",
            ["train", "val"],
            **dict.fromkeys(("train", "val"), _list("a list of cases", CASE)),
        ),
    ),
    "split": {
        "type": "object",
        "additionalProperties": _list("a list of the names of cases", CASE),
        "description": "a JSON object of lists of cases, by part",
    },
    "record": _object(
        "the record of weights, a JSON object",
        data=NAME,
        split=_or_null(FILE),
        split_sha256=_or_null(SHA256),
        method=NAME,
        network={
            "enum": ["EfficientUNet", "FrequencyHybrid", "SAM", "UNet"],
            "description": "EfficientUNet, FrequencyHybrid, SAM or UNet",
        },
        settings=_SETTINGS,
        fusion=NAME,
        seed={"type": "integer", "description": "a whole number"},
        iteration=COUNT,
        iterations=COUNT,
        precision=TEXT,
        labeled_cases=COUNT,
        labeled_slices=COUNT,
        unlabeled_cases=COUNT,
        unlabeled_slices=COUNT,
        sites=COUNT,
        batch_size=COUNT,
        processes=COUNT,
        image_size=IMAGE_SIZE,
        slice_axis=SLICE_AXIS,
        missing_cases={
            "type": ["array", "integer"],
            "items": NAME,
            "minimum": 0,
            "description": "a list of names of cases, or their number",
        },
        pixel_spacing=PIXEL_SPACING,
        percentiles=PERCENTILES,
        mirroring=SWITCH,
        largest_component=SWITCH,
        synthetic=SWITCH,
        learning_rate=NUMBER,
        validation_dice=SHARE,
        fold=COUNT,
        class_names=_map("names by class, such as {'1': 'bone'}", CLASS, NAME),
        code=TEXT,
        sha256=SHA256,
        continues_sha256=SHA256,
        labeled_sha256=_list(
            "digests of studies",
            {"type": "string", "pattern": r"^[0-9a-f]{16}\Z", "description": "16 hexadecimal digits"},
        ),
        license=LICENSE,
        calibration=_CALIBRATION,
    ),
    "run": _object(
        "what a run of a comparison is, a JSON object",
        ["method", "overlay", "seed", "command"],
        method=TEXT,
        overlay=TEXT,
        seed=COUNT,
        command=TEXT,
    ),
    "config": _object("a configuration, a JSON object"),
    "checkpoint": _object(
        "the state of a run",
        ["epoch", "iteration", "max_epochs", "best_metric", "best_metric_epoch"],
        epoch=COUNT,
        iteration=COUNT,
        max_epochs=COUNT,
        best_metric=NUMBER,
        best_metric_epoch={"type": "integer", "minimum": -1, "description": "a whole number from -1"},
        trained_by=_object(
            "lists of texts", code=_list("a list of texts", TEXT), precision=_list("a list of texts", TEXT)
        ),
    ),
    "options": _object(
        "options",
        bundle_root=PATH,
        cache_dir=PATH,
        checkpoint=PATH,
        dataset_dir=PATH,
        output_dir=PATH,
        splits=_or_null(PATH),
        image_size=IMAGE_SIZE,
        pixel_spacing=PIXEL_SPACING,
        percentiles=PERCENTILES,
        in_channels={"type": "integer", "minimum": 1, "maximum": 64, "description": "a whole number in 1..64"},
        num_classes=CLASSES,
        class_names=_map("names by class, such as {'1': 'bone'}", CLASS, NAME),
        batch_size={"type": "integer", "minimum": 1, "maximum": 65536, "description": "a whole number from 1"},
        num_workers={"type": "integer", "minimum": 0, "maximum": 1024, "description": "a whole number from 0"},
        seed={"type": "integer", "minimum": 0, "maximum": 2**63 - 1, "description": "a whole number from 0"},
        fold={"type": "integer", "minimum": 0, "description": "a whole number from 0"},
        max_epochs={"type": "integer", "minimum": 1, "maximum": 10**9, "description": "a whole number from 1"},
        epoch_length={"type": "integer", "minimum": 1, "maximum": 10**9, "description": "a whole number from 1"},
        val_interval={"type": "integer", "minimum": 1, "description": "a whole number from 1"},
        learning_rate={
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1e6,
            "description": "a number above 0",
        },
        part=NAME,
    ),
    "evaluation": _object(
        "an evaluation of evaluate.json, a JSON object",
        ["part", "weights_sha256", "code"],
        part=NAME,
        weights_sha256=SHA256,
        code=TEXT,
    ),
    "metadata": _object(
        "a bundle's metadata, a JSON object",
        ["version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "changelog"],
        version=VERSION,
        monai_version=TEXT,
        pytorch_version=TEXT,
        numpy_version=TEXT,
        required_packages_version=_map("versions by package", NAME, TEXT),
        dicom_packages_version=_map("versions by package", NAME, TEXT),
        changelog=_map("changes by version", VERSION, TEXT),
        name=TEXT,
        description=TEXT,
        intended_use=TEXT,
        data_license=TEXT,
        data_source=TEXT,
        references=_list("a list of references", TEXT),
    ),
    "training": _object(
        "a training config, a JSON object",
        ["layout", "in_channels", "num_classes", "output_ext"],
        layout={"enum": ["acdc", "custom", "isic", "promise12"], "description": "acdc, custom, isic or promise12"},
        in_channels={"type": "integer", "minimum": 1, "maximum": 64, "description": "a whole number of channels"},
        num_classes=CLASSES,
        anti_aliasing=SWITCH,
        output_ext={"enum": [".nii.gz", ".nii", ".mha", ".mhd", ".png"], "description": "the suffix of an image file"},
        class_names=_map("names by class", CLASS, NAME),
        label_values=_or_null(LABEL_VALUES),
    ),
    "large files": _object(
        "a list of large files",
        ["large_files"],
        large_files=_list(
            "a list of files",
            _object("a file's path, address and digest", ["path"], path=FILE, url=TEXT, hash_val=TEXT, hash_type=TEXT),
        ),
    ),
}
"""A JSON schema (draft 7) for each kind of file; messages take "expected ..." from a schema's description."""
