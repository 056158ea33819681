"""The volumes of a folder of DICOM files, and one line for everything else in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.data.dicom.headers import Header, read_header
from scripts.data.dicom.pixels import end_systole
from scripts.data.dicom.stacks import (
    MINIMUM,
    Phases,
    acquisition,
    affine_of,
    by_orientation,
    describe_phases,
    lacking_lines,
    phases_of,
    positions_along_normal,
)
from scripts.data.dicom.volume import DicomVolume, Frame, pseudonym
from scripts.data.nifti import LPS_TO_RAS
from scripts.utils.files import files_below

__all__ = ["Findings", "find_volumes"]


@dataclass
class Findings:
    """The contents of a folder of DICOM files; lines and names contain no patient data.

    Attributes:
        volumes: the volumes, sorted by name.
        segmentations: the DICOM SEGs.
        skipped: a line for each series that is not to be segmented.
        refused: a line for each unusable series or file.
        origins: the headers by the names in these lines and of the volumes.
    """

    volumes: list[DicomVolume] = field(default_factory=list)
    segmentations: list[Header] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    origins: dict[str, Header] = field(default_factory=dict)


@dataclass(frozen=True)
class _Stack:
    """Images that may form a volume, possibly in several phases."""

    name: str
    label: str
    frames: list[Frame]
    phases: Phases


def find_volumes(
    source: str | Path,
    phase: Any = None,
    modality: str | None = None,
    series: str | None = None,
    photographs: bool = False,
    salt: bytes = b"",
) -> Findings:
    """Find the volumes, or the photographs, of a folder and its subfolders.

    Names and order of files are ignored; :func:`scripts.data.dicom.stacks.phases_of` defines a volume.

    Args:
        source: the folder, or a single file.
        phase: phases of the heart to use from series with several: ``all``, a number from 1, ``ed``, ``es``, or several
            of these, separated by commas; ``es`` is an estimate, see :func:`scripts.data.dicom.pixels.end_systole`.
            None: such series raise an error.
        modality: use only these scans, ``MR`` or ``CT``; None: the only modality that there is.
        series: use only series whose description or protocol matches this regular expression, ignoring case.
        photographs: use colour photographs; else scans.
        salt: salt of the pseudonyms, see :func:`scripts.data.dicom.volume.pseudonym`.

    Returns:
        the contents; a volume's name is ``STUDY_SERIES`` by pseudonyms, with ``_phase03`` for several phases. A
        photograph's name has a third pseudonym, its own.

    Raises:
        ValueError: if ``phase``, ``modality`` or ``series`` is invalid, or required but missing.
    """
    chosen = _parse_phase(phase)
    wanted = _pattern(series)
    if modality not in (None, "MR", "CT"):
        raise ValueError(f"modality: expected MR or CT, found '{modality}'.")
    source = Path(os.path.abspath(source))
    root = source if source.is_dir() else source.parent
    found = Findings()
    by_series = _by_series(files_below(source) if source.is_dir() else [source], root, found, salt)
    stacks: list[_Stack] = []
    loose: list[tuple[str, str, list[Frame]]] = []
    for headers in by_series.values():
        name, label = _name(headers, salt)
        found.origins[name] = headers[0]
        usable = _usable(headers, label, photographs, modality, wanted, found)
        frames = [frame for header in usable for frame in header.frames]
        if photographs:
            found.volumes += [_photograph(root, name, frame, usable[0], salt) for frame in frames]
            continue
        _to_stacks(name, label, frames, stacks, loose, found)
    _join_loose(loose, stacks, found, salt)
    _check_modality({h.file: h for of in by_series.values() for h in of}, stacks)
    _ask_for_phase(stacks, chosen)
    headers_by_file = {str(h.file): h for of in by_series.values() for h in of}
    for stack in stacks:
        found.volumes += _volumes(root, stack, chosen, headers_by_file[stack.frames[0].file], found, salt)
    found.volumes.sort()
    return found


def _parse_phase(phase: Any) -> list[int | str] | None:
    """The requested phases.

    Raises:
        ValueError: for anything but ``all``, numbers from 1, ``ed`` and ``es``.
    """
    if phase is None:
        return None
    words = phase if isinstance(phase, Sequence) and not isinstance(phase, str) else str(phase).split(",")
    chosen: list[int | str] = []
    for word in (str(word).strip().lower() for word in words):
        if word not in ("all", "ed", "es") and not (word.isascii() and word.isdigit() and int(word) > 0):
            raise ValueError(f"phase: expected all, a number from 1, ed or es, or several of them, found '{phase}'.")
        chosen.append(int(word) if word.isdigit() else word)
    return chosen


def _pattern(series: str | None) -> re.Pattern | None:
    if series is None:
        return None
    try:
        return re.compile(str(series), re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"series: expected a regular expression, found '{series}': {error}.") from None


def _by_series(files: Iterable[Path], root: Path, found: Findings, salt: bytes) -> dict[tuple[str, str], list[Header]]:
    """Headers by study and series, each content once; other files become lines."""
    by_series: dict[tuple[str, str], list[Header]] = {}
    instances: set[str] = set()
    strangers = copies = 0
    for path in files:
        header = read_header(path)
        if header is None:
            strangers += path.name.upper() != "DICOMDIR"
        elif not header.series:
            name = f"file_{pseudonym(path.relative_to(root).as_posix(), salt)}"
            found.origins[name] = header
            lines = found.refused if header.fault else found.skipped
            lines.append(f"{name}: {header.fault or header.skip}")
        elif header.instance and header.instance in instances:
            copies += 1
        else:
            instances.add(header.instance)
            by_series.setdefault((header.study, header.series), []).append(header)
    if strangers:
        found.skipped.append(f"{strangers} file{'s are' if strangers > 1 else ' is'} not DICOM.")
    if copies:
        found.skipped.append(f"{copies} file{'s are copies' if copies > 1 else ' is a copy'} of others.")
    return by_series


def _name(headers: Sequence[Header], salt: bytes) -> tuple[str, str]:
    """The name of a series, and the start of a line about it."""
    first = headers[0]
    name = f"{pseudonym(first.study, salt)}_{pseudonym(first.series, salt)}"
    count = sum(max(1, len(header.frames)) for header in headers)
    parts = [f"series {first.number}" if first.number else "", first.modality, f"{count} image{'s'[: count > 1]}"]
    return name, f"{name} ({', '.join(filter(None, parts))})"


def _usable(
    headers: Sequence[Header],
    label: str,
    photographs: bool,
    modality: str | None,
    wanted: re.Pattern | None,
    found: Findings,
) -> list[Header]:
    """The files of a series with images to segment; the others are reported in lines."""
    faults = [header.fault for header in headers if header.fault]
    if faults:
        found.refused.append(f"{label}: {_share(faults, headers)}{faults[0]}")
        return []
    if headers[0].is_segmentation:
        found.segmentations += headers
        found.skipped.append(f"{label}: Segmentation Storage: a label, not an image.")
        return []
    if wanted is not None and not wanted.search(headers[0].description):
        found.skipped.append(f"{label}: its description does not match --series.")
        return []
    reasons = [header.skip or _other_kind(header, photographs, modality) for header in headers]
    for reason in dict.fromkeys(filter(None, reasons)):
        found.skipped.append(f"{label}: {_share([r for r in reasons if r == reason], headers)}{reason}")
    return [header for header, reason in zip(headers, reasons, strict=True) if not reason]


def _share(some: Sequence[Any], headers: Sequence[Header]) -> str:
    return f"{len(some)} of {len(headers)} files: " if len(some) < len(headers) else ""


def _other_kind(header: Header, photographs: bool, modality: str | None) -> str:
    """Why images are not of the requested kind."""
    if header.frames[0].colour != photographs:
        return "a scan, expected a photograph." if photographs else "a colour picture, expected a scan."
    if not photographs and modality and header.modality != modality:
        return f"modality {header.modality}, expected {modality}."
    return ""


def _photograph(root: Path, name: str, frame: Frame, header: Header, salt: bytes) -> DicomVolume:
    own = f"{name}_{pseudonym(frame.instance, salt)}"
    return DicomVolume(str(root / f"{own}.dcm"), [frame], LPS_TO_RAS, _case(header, salt))


def _to_stacks(
    name: str,
    label: str,
    frames: list[Frame],
    stacks: list[_Stack],
    loose: list[tuple[str, str, list[Frame]]],
    found: Findings,
) -> None:
    """Divide a series into stacks; single slices are kept, because several series may form a stack."""
    groups = by_orientation(frames)
    for i, group in enumerate(groups):
        own = name if len(groups) == 1 else f"{name}_{i + 1}"
        try:
            along = positions_along_normal(group)
            if along.max() - along.min() < 0.05 * min(group[0].spacing):
                loose.append((name, label, group))
                continue
            phases = phases_of(group)
            places = max(map(len, phases.frames.values()), default=0)
            if not phases.lacking and places < MINIMUM:
                found.skipped.append(f"{label}: only {places} slices, not a stack.")
            else:
                stacks.append(_Stack(own, label, group, phases))
        except ValueError as reason:
            found.refused.append(f"{label}: {reason}")


def _join_loose(
    loose: Sequence[tuple[str, str, list[Frame]]], stacks: list[_Stack], found: Findings, salt: bytes
) -> None:
    """Make stacks of series with one slice each; other slices are reported in a line each."""
    groups: dict[tuple, list[tuple[str, str, list[Frame]]]] = {}
    for item in loose:
        groups.setdefault(acquisition(item[2][0]), []).append(item)
    for items in groups.values():
        for parallel in by_orientation(frames[0] for _, _, frames in items):
            first = {id(frame) for frame in parallel}
            members = [item for item in items if id(item[2][0]) in first]
            frames = [frame for _, _, of in members for frame in of]
            if len({round(float(p), 1) for p in positions_along_normal(parallel)}) < MINIMUM:
                found.skipped += [
                    f"{label}: a single slice, not a stack, like localizers and long-axis views."
                    for _, label, _ in members
                ]
                continue
            study = members[0][0].partition("_")[0]
            name = f"{study}_{pseudonym(chr(0).join(sorted({frame.series for frame in frames})), salt)}"
            label = f"{name} (a stack of {len(members)} series, {len(frames)} images)"
            found.origins[name] = found.origins[members[0][0]]
            try:
                stacks.append(_Stack(name, label, frames, phases_of(frames)))
            except ValueError as reason:
                found.refused.append(f"{label}: {reason}")


def _check_modality(headers: Mapping[Path, Header], stacks: Sequence[_Stack]) -> None:
    """Refuse to mix scans of different modalities.

    Raises:
        ValueError: if there are several, with their list.
    """
    found: dict[str, int] = {}
    for stack in stacks:
        modality = headers[Path(stack.frames[0].file)].modality
        found[modality] = found.get(modality, 0) + 1
    if len(found) > 1:
        named = ", ".join(f"{modality or 'no modality'} ({count})" for modality, count in sorted(found.items()))
        raise ValueError(f"there are stacks of several modalities, {named}: choose one by --modality.")


def _ask_for_phase(stacks: Sequence[_Stack], chosen: Sequence[int | str] | None) -> None:
    """Require a choice of phases for stacks with several.

    Raises:
        ValueError: if there are several, with their list.
    """
    several = [stack for stack in stacks if stack.phases.total > 1]
    if chosen is not None or not several:
        return
    more = f", as {len(several) - 1} more" if len(several) > 1 else ""
    raise ValueError(
        f"{several[0].label} has {describe_phases(several[0].phases)}{more}: choose by --phase all, "
        f"a number from 1 to {several[0].phases.total}, or ed,es."
    )


def _volumes(
    root: Path, stack: _Stack, chosen: Sequence[int | str] | None, header: Header, found: Findings, salt: bytes
) -> list[DicomVolume]:
    """The volumes of a stack; phases with missing or uneven slices are reported in lines."""
    phases = stack.phases
    try:
        affines = {phase: affine_of(frames) for phase, frames in phases.frames.items()}
        numbers = [1] if phases.total == 1 else _numbers(phases, chosen or ["all"])
    except ValueError as reason:
        found.refused.append(f"{stack.label}: {reason}")
        return []
    found.refused += [
        f"{stack.label}: {line}"
        for line in lacking_lines({phase: n for phase, n in phases.lacking.items() if phase in numbers})
    ]
    volumes = []
    for number in numbers:
        if number not in phases.frames:
            continue
        name = stack.name if phases.total == 1 else f"{stack.name}_phase{number:02d}"
        found.origins[name] = header
        path = str(root / f"{name}.dcm")
        volumes.append(DicomVolume(path, phases.frames[number], affines[number], _case(header, salt)))
    return volumes


def _numbers(phases: Phases, chosen: Sequence[int | str]) -> list[int]:
    """Numbers of the requested phases.

    Raises:
        ValueError: if a phase does not exist.
    """
    numbers: set[int] = set()
    for word in chosen:
        if word == "all":
            numbers |= set(range(1, phases.total + 1))
        elif word == "ed":
            numbers.add(1)
        elif word == "es":
            order = sorted(phases.frames)
            if order[:1] != [1]:
                raise ValueError("phase 1 lacks slices: the end of systole is unknown.")
            numbers.add(order[end_systole([phases.frames[number] for number in order])])
        elif int(word) > phases.total:
            raise ValueError(f"no phase {word}: it has {describe_phases(phases)}.")
        else:
            numbers.add(int(word))
    return sorted(numbers)


def _case(header: Header, salt: bytes) -> str:
    """Pseudonym of the patient, or of the study if the header has no patient."""
    return f"patient_{pseudonym(header.patient or header.study, salt)}"
