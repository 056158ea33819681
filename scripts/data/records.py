"""Records of a data set: the files of its cases, their part of the split, and their labels.

A record is ``{"image": path, "label": path, "case": name}``; one without ``"label"`` is unlabelled. A case is a unit of
the split: a patient with all frames, or an image.
"""

from __future__ import annotations

import hashlib
import logging
import numbers
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.data.axis import decide_axis, read_grids
from scripts.data.checks import add_or_raise
from scripts.data.layouts.acdc import acdc_cases
from scripts.data.layouts.custom import custom_cases
from scripts.data.layouts.datalist import read_datalist, read_slice_axis
from scripts.data.layouts.isic import isic_cases
from scripts.data.layouts.nnunet import description_of
from scripts.data.layouts.promise12 import promise12_cases
from scripts.utils.validation import read_json

__all__ = [
    "LAYOUTS",
    "Layout",
    "Split",
    "cohort_axis",
    "dataset_records",
    "hide_labels",
    "missing_cases",
    "read_split",
    "seeded_split",
    "split_cases",
]

logger = logging.getLogger(__name__)

Record = dict[str, str]


class Layout(NamedTuple):
    """The layout of a data set on disk.

    Attributes:
        find: returns the records of each case of a folder, with all labels; faults are raised, or added to the list in
            the second argument.
        source: origin of the data set and the structure of its folder, for messages.
        validation: share of the cases for validation in the seeded split, if no split is given.
    """

    find: Callable[[Path, list[str] | None], dict[str, list[Record]]]
    source: str
    validation: float = 0.2


class Split(NamedTuple):
    """The cases of a data set by part.

    Attributes:
        parts: the records of each existing case, by part and case, in the order of the protocol.
        missing: the cases of the split that the folder lacks, by part.
        spare: the records of existing cases that are not in the split.
        where: origin of the split, for messages.
    """

    parts: dict[str, dict[str, list[Record]]]
    missing: dict[str, list[str]]
    spare: dict[str, list[Record]]
    where: str


LAYOUTS: dict[str, Layout] = {
    "custom": Layout(
        custom_cases,
        "A data set of your own is a datalist JSON, or a folder of images whose labels lie beside them (NAME_gt, "
        "_segmentation, _seg, _label, _mask) or in labels/ or masks/ beside images/",
    ),
    "acdc": Layout(
        acdc_cases,
        "ACDC comes from https://www.creatis.insa-lyon.fr/Challenge/acdc/ (folders patientXXX with patientXXX_frameYY"
        ".nii.gz and _gt.nii.gz)",
    ),
    "isic": Layout(
        isic_cases,
        "ISIC 2018 Task 1 comes from https://challenge.isic-archive.com/data/ (folders *_Input and *_GroundTruth, or "
        "images and masks, with <image>.jpg and <image>_segmentation.png)",
        validation=756 / 2594,
    ),
    "promise12": Layout(
        promise12_cases,
        "PROMISE12 comes from https://promise12.grand-challenge.org/ (CaseNN.mhd and CaseNN_segmentation.mhd with "
        "their .raw files, in one folder or in those of the archives)",
    ),
}
"""The layouts by their names in the config id ``layout``."""


def dataset_records(
    layout: str,
    dataset_dir: str | Path,
    part: str,
    splits: str | Path | None = None,
    labeled: float | None = None,
    allow_missing: bool = False,
    fold: int = 0,
) -> list[Record]:
    """List the records of one part of a data set's split.

    Args:
        layout: layout of the folder, a key of :data:`LAYOUTS`.
        dataset_dir: folder of the data set, or a datalist JSON (:func:`scripts.data.layouts.datalist.read_datalist`),
            which contains its own split.
        part: ``train``, ``val``, ``test``, or another key of ``splits``. An empty part gives an empty list, except for
            ``train``.
        splits: JSON file ``{"train": [...], "val": [...], "test": [...]}`` of case names. The first cases of ``train``
            are the labelled ones. None: :func:`seeded_split` of the labelled cases.
        labeled: only for ``train``: number of labelled cases or, below 1, their share of the part. They are the first
            of the list; the records of all others have no label, even if there is one on disk. None: all labels.
        allow_missing: whether cases of ``splits`` may be missing, as downloads are often incomplete. They are logged,
            and ``labeled`` counts the others.
        fold: the validation fold, if the datalist or nnU-Net's folder has folds.

    Returns:
        records in the order of the part's list.

    Raises:
        FileNotFoundError: if the folder, the splits file, a case, an image or a label is missing, or no training image
            has a label although ``labeled`` is not 0.
        ValueError: for an unknown layout or part, a split with a duplicate case, or a ``labeled`` out of range.
    """
    split = split_cases(layout, dataset_dir, splits, fold=fold)
    if part not in split.parts:
        raise ValueError(f"{split.where} has no part '{part}', only {sorted(split.parts)}.")
    chosen, missing = split.parts[part], split.missing.get(part)
    if missing:
        few = ", ".join(missing) if allow_missing else ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        what = (
            f"{len(missing)} of the {len(missing) + len(chosen)} '{part}' cases of {split.where} are not in "
            f"'{dataset_dir}': {few}."
        )
        if not allow_missing or not chosen:
            raise FileNotFoundError(f"{what} {LAYOUTS[layout].source}. --allow_missing True continues without them.")
        logger.warning("%s", what)
    records = [record for of_case in chosen.values() for record in of_case]
    if part == "train" and records and labeled != 0 and not any("label" in record for record in records):
        images = [record["image"] for record in records]
        taken = ", ".join(images[:3]) + (f", ... ({len(images)} in all)" if len(images) > 3 else "")
        raise FileNotFoundError(
            f"no training image of '{dataset_dir}' has a label; taken for images: {taken}. {LAYOUTS[layout].source}."
        )
    return hide_labels(chosen, labeled, split.where) if part == "train" else _all_labeled(chosen)


def missing_cases(layout: str, dataset_dir: str | Path, splits: str | Path | None = None) -> list[str]:
    """The training and validation cases of a split that the folder lacks, in its order.

    Args:
        layout: see :func:`dataset_records`.
        dataset_dir: see :func:`dataset_records`.
        splits: see :func:`dataset_records`.
    """
    missing = split_cases(layout, dataset_dir, splits).missing
    return [name for part in ("train", "val") for name in missing.get(part, [])]


def split_cases(
    layout: str,
    dataset_dir: str | Path,
    splits: str | Path | None = None,
    faults: list[str] | None = None,
    fold: int = 0,
) -> Split:
    """The cases of a data set by part, with all labels.

    Args:
        layout: see :func:`dataset_records`.
        dataset_dir: see :func:`dataset_records`.
        splits: see :func:`dataset_records`. A datalist without a validation part gets a seeded one.
        faults: if given, faults of names, datalist or splits file are added to this list, and the valid cases are
            returned.
        fold: see :func:`dataset_records`.

    Raises:
        FileNotFoundError: if the folder or the splits file is missing, or there is no case.
        ValueError: for an unknown layout, or an invalid folder, splits file or datalist.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(sorted(LAYOUTS))}, found '{layout}'.")
    root = description_of(Path(dataset_dir)) or Path(dataset_dir)
    find, source, validation = LAYOUTS[layout]
    if root.suffix.lower() == ".json":
        listed = {part: _by_case(records) for part, records in read_datalist(root, faults, fold=fold).items()}
        train = listed.setdefault("train", {})
        if "val" not in listed:
            listed["val"] = {name: train.pop(name) for name in _seeded_parts(train, validation)["val"]}
        return Split(listed, {}, {}, str(root))
    if not root.is_dir():
        raise FileNotFoundError(
            f"dataset_dir '{root}' does not exist. {source}; without data, `make demo` makes a synthetic cohort."
        )
    cases = find(root, faults)
    if not cases:
        raise FileNotFoundError(f"no case in dataset_dir '{root}'. {source}.")
    names = _seeded_parts(cases, validation) if splits is None else read_split(splits, faults)
    named = {name for of_part in names.values() for name in of_part}
    return Split(
        {part: {name: cases[name] for name in of_part if name in cases} for part, of_part in names.items()},
        {part: [name for name in of_part if name not in cases] for part, of_part in names.items()},
        {name: records for name, records in cases.items() if name not in named},
        str(splits or "the seeded split"),
    )


def cohort_axis(records: Sequence[Mapping[str, str]], source: str | Path = "") -> str:
    """The slice axis of a data set; the reason is logged.

    Args:
        records: records with the path of an ``image``.
        source: the data set's folder or datalist. A datalist may have the axis, like those of ``prepare``; else all
            headers decide, see :func:`scripts.data.axis.decide_axis`.

    Raises:
        ValueError: if the axis in a datalist is invalid.
    """
    if str(source).lower().endswith(".json") and (listed := read_slice_axis(source)):
        return listed
    decision = decide_axis(read_grids([record["image"] for record in records]))
    logger.info("Slices are %s: %s.", decision.axis, decision.reason)
    return decision.axis


def hide_labels(cases: Mapping[str, Sequence[Record]], labeled: float | None, where: object) -> list[Record]:
    """Training records: only the first cases keep their labels.

    Args:
        cases: records by case, in the order of the protocol.
        labeled: see :func:`dataset_records`.
        where: origin of the split, for messages.

    Raises:
        FileNotFoundError: if one of the labelled cases lacks a label.
        ValueError: if there is no case, or ``labeled`` is out of range.
    """
    if not cases:
        raise ValueError(f"{where} has no case to train with.")
    if labeled is None:
        return [record for records in cases.values() for record in records]
    if isinstance(labeled, bool) or not isinstance(labeled, numbers.Real):
        raise ValueError(f"labeled={labeled!r}: expected a number of labelled cases, or a share of them below 1.")
    count = max(1, round(labeled * len(cases))) if 0 < labeled < 1 else int(labeled)
    whole = 0 < labeled < 1 or count == labeled
    if not whole or not 0 <= count <= len(cases):
        raise ValueError(
            f"labeled={labeled}: the number of labelled cases must be in 0..{len(cases)}, the number of train cases "
            f"in {where}, or a share of them between 0 and 1."
        )
    names = list(cases)
    shown = _all_labeled({name: cases[name] for name in names[:count]})
    hidden = [{k: v for k, v in record.items() if k != "label"} for name in names[count:] for record in cases[name]]
    return shown + hidden


def read_split(path: str | Path, faults: list[str] | None = None) -> dict[str, list[str]]:
    """Read a split of case names.

    Args:
        path: JSON file.
        faults: if given, duplicate cases are added to this list, and the first part with the case is used.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON of lists of names.
        FaultsError: if a case occurs twice, in one part or in two; all such cases.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"splits file '{path}' does not exist.")
    parts = read_json(path, "split")
    first: dict[str, str] = {}
    sound: dict[str, list[str]] = {part: [] for part in parts}
    found = []
    for part, names in parts.items():
        for name in names:
            name = unicodedata.normalize("NFC", name)  # like the cases' own names
            if name in first:
                where = f"part '{part}' twice" if first[name] == part else f"parts '{first[name]}' and '{part}'"
                found.append(f"{path} has '{name}' in {where}: expected each case once.")
                continue
            first[name] = part
            sound[part].append(name)
    add_or_raise(found, faults)
    return sound


def seeded_split(names: Iterable[str], validation: float, seed: int = 0) -> dict[str, list[str]]:
    """Split cases into ``train`` and ``val``, on every machine in the same way for the same names.

    The cases are sorted by the SHA-256 digest of ``"seed:name"``, which does not depend on a random generator's
    version; the last ones are for validation. The first training cases are the labelled ones.

    Args:
        names: the cases, in any order.
        validation: share of the validation cases, in [0, 1); of two or more cases at least one, unless the share is 0.
        seed: seed of the split.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())
    count = min(max(1, round(validation * len(order))), len(order) - 1) if validation > 0 and order else 0
    return {"train": order[: len(order) - count], "val": order[len(order) - count :]}


def _seeded_parts(cases: Mapping[str, Sequence[Record]], validation: float) -> dict[str, list[str]]:
    """The seeded split of the fully labelled cases; all others are training cases after those."""
    complete = [name for name, records in cases.items() if all("label" in record for record in records)]
    split = seeded_split(complete, validation)
    return {**split, "train": split["train"] + sorted(cases.keys() - set(complete))}


def _by_case(records: Sequence[Record]) -> dict[str, list[Record]]:
    cases: dict[str, list[Record]] = {}
    for record in records:
        cases.setdefault(record["case"], []).append(record)
    return cases


def _all_labeled(cases: Mapping[str, Sequence[Record]]) -> list[Record]:
    records = [record for of_case in cases.values() for record in of_case]
    for record in records:
        if "label" not in record:
            raise FileNotFoundError(
                f"'{record['image']}' has no label file, but is one of the labelled cases of its part."
            )
    return records
