"""Records of a data set: which files are its cases, which part of the split they are in, which labels are seen.

A record is ``{"image": path, "label": path, "case": name}``; one without ``"label"`` is unlabelled. A case is what a
split must not tear apart: a patient with all frames, or an image.
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
    """How a data set lies on disk.

    Attributes:
        find: from the data set's folder to the records of each case, with every label that there is; what is wrong
            is raised, or added to the list that a second argument gives.
        source: where the data set comes from and what its folder looks like, for messages.
        validation: share of the cases that the seeded split sets aside where no split is given.
    """

    find: Callable[[Path, list[str] | None], dict[str, list[Record]]]
    source: str
    validation: float = 0.2


class Split(NamedTuple):
    """The cases of a data set by part.

    Attributes:
        parts: the records of each case that is there, by part and case, in the order of the protocol.
        missing: the cases that the split names and the folder lacks, by part.
        spare: the records of the cases that are there and that the split does not name.
        where: what decided on the parts, for messages.
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
"""The layouts by the name that the config id ``layout`` gives."""


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
        layout: how the folder is laid out, a key of :data:`LAYOUTS`.
        dataset_dir: folder of the data set, or a datalist JSON (:func:`scripts.data.layouts.datalist.read_datalist`),
            which says itself where its cases are and which part they belong to.
        part: ``train``, ``val``, ``test``, or another key of ``splits``. A part that ``splits`` leaves empty gives an
            empty list, but for ``train``.
        splits: JSON file ``{"train": [...], "val": [...], "test": [...]}`` of case names. The order of ``train``
            decides which cases are the labelled ones. None: :func:`seeded_split` of the labelled cases that are there.
        labeled: only for ``train``: number of labelled cases, or, below 1, their share of the part. They are the
            first of the list; the records of all others carry no label, whether there is one on disk or not. None:
            all labels that there are.
        allow_missing: whether cases that ``splits`` names may be missing, as downloads are often incomplete. They are
            logged, and ``labeled`` counts the others.
        fold: the one that validates, of a datalist or of nnU-Net's folder that has folds.

    Returns:
        records in the order of the part's list.

    Raises:
        FileNotFoundError: when the folder, the splits file, a case, an image or a label is missing, or no training
            image has a label and ``labeled`` is not 0.
        ValueError: for an unknown layout or part, a split that names a case twice, or a ``labeled`` out of range.
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
            raise FileNotFoundError(f"{what} {LAYOUTS[layout].source}. --allow_missing True goes on without them.")
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
    """The names of the cases of training and validation that a split names and the folder lacks, in its order.

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
    """The cases of a data set, part by part, with all labels that there are.

    Args:
        layout: see :func:`dataset_records`.
        dataset_dir: see :func:`dataset_records`.
        splits: see :func:`dataset_records`. A datalist without a validation part gets a seeded one.
        faults: where given, what is wrong with names, datalist or splits file is added here, and what is sound is
            returned.
        fold: see :func:`dataset_records`.

    Raises:
        FileNotFoundError: when the folder or the splits file is missing, or there is no case.
        ValueError: for an unknown layout, or as the layout, the splits file and the datalist demand.
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
            f"dataset_dir '{root}' does not exist. {source}; without any, `make demo` makes a synthetic cohort."
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
    """The axis of a data set; what decides is logged.

    Args:
        records: with the path of an ``image``.
        source: the data set's folder or datalist. A datalist may name the axis, as those of ``prepare`` do; else it is
            decided from all headers, see
            :func:`scripts.data.axis.decide_axis`.

    Raises:
        ValueError: where a datalist names something else.
    """
    if str(source).lower().endswith(".json") and (listed := read_slice_axis(source)):
        return listed
    decision = decide_axis(read_grids([record["image"] for record in records]))
    logger.info("Slices are %s: %s.", decision.axis, decision.reason)
    return decision.axis


def hide_labels(cases: Mapping[str, Sequence[Record]], labeled: float | None, where: object) -> list[Record]:
    """Training records: the first cases keep their labels, the others lose them.

    Args:
        cases: records by case, in the order of the protocol.
        labeled: see :func:`dataset_records`.
        where: what decided on the cases, for messages.

    Raises:
        FileNotFoundError: when a case that counts as labelled lacks a label.
        ValueError: when there is no case, or ``labeled`` is out of range.
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
        faults: where given, cases that are named twice are added here, and the first part that names one counts.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no JSON of lists of names.
        FaultsError: when it names a case twice, in one part or in two; all such cases.
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
            name = unicodedata.normalize("NFC", name)  # as the cases' own names are
            if name in first:
                where = f"part '{part}' twice" if first[name] == part else f"parts '{first[name]}' and '{part}'"
                found.append(f"{path} names '{name}' in {where}: a case belongs to one part, once.")
                continue
            first[name] = part
            sound[part].append(name)
    add_or_raise(found, faults)
    return sound


def seeded_split(names: Iterable[str], validation: float, seed: int = 0) -> dict[str, list[str]]:
    """Split cases into ``train`` and ``val``, the same everywhere for the same names.

    The cases are put in the order of the SHA-256 digest of ``"seed:name"``, which no version of a random generator
    can change; the last ones validate. The order also decides which training cases are the labelled ones.

    Args:
        names: the cases, in any order.
        validation: their share that validates, in [0, 1); at least one case does where there are two and the share
            is not 0.
        seed: another seed gives another split.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())
    count = min(max(1, round(validation * len(order))), len(order) - 1) if validation > 0 and order else 0
    return {"train": order[: len(order) - count], "val": order[len(order) - count :]}


def _seeded_parts(cases: Mapping[str, Sequence[Record]], validation: float) -> dict[str, list[str]]:
    """The seeded split of the cases that are labelled throughout; all others train, after those."""
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
            raise FileNotFoundError(f"'{record['image']}' has no label file, but counts as labelled in its part.")
    return records
