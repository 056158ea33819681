"""The cases to label next: ``python -m bundle suggest``."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bundle.prepare.survey import load
from bundle.suggest.selection import Choice, case_features, choose, similarities
from bundle.workflows import dataset_overlay
from scripts.data.images import source_root
from scripts.data.layouts.datalist import read_class_values, read_slice_axis
from scripts.data.layouts.nnunet import description_of
from scripts.data.records import split_cases
from scripts.handlers.report import aligned
from scripts.utils.files import replacing, write_text
from scripts.utils.threads import in_threads
from scripts.utils.validation import parse_json, read_text

__all__ = ["main"]

Case = Sequence[Mapping[str, str]]
STRATEGIES = ("coverage", "random")


def main(
    dataset_dir: str,
    count: int = 3,
    dataset: str = "custom",
    splits: str | None = None,
    labeled: int | None = None,
    quality: str | None = None,
    strategy: str = "coverage",
    seed: int = 0,
    output: str | None = None,
) -> None:
    """Suggest training cases to label next, with the reasons.

    Without a network the selection uses the images only: together with the labelled cases, the suggested ones cover all
    cases best, by thumbnails, intensities and size. With ``quality``, cases with worse results of the network have more
    weight.

    Args:
        dataset_dir: folder of the data set, or its datalist.
        count: number of cases.
        dataset: acdc, promise12, isic or custom: an overlay in ``configs/datasets``.
        splits: JSON file of case names by part; default: that of the overlay.
        labeled: number of labelled cases, the first of the split; default: those that have a label.
        quality: ``quality.csv`` of an inference over the same images with ``--quality True``.
        strategy: ``coverage``, or ``random`` as a baseline.
        seed: seed of ``random``.
        output: datalist to write, labelled cases first, then the suggested ones, then the others; for ``prepare``, or
            for training with ``--labeled``. NAME_montage.png in the same folder shows the suggested cases.

    Raises:
        ValueError: if an option is invalid, no case is left, or the table belongs to other images.
        FileNotFoundError: if the data set, the split or the table does not exist.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count: expected a whole number from 1, found {count!r}.")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, found '{strategy}'.")
    target = Path(os.path.abspath(output)) if output else None
    if target and (target.suffix != ".json" or target == Path(os.path.abspath(dataset_dir))):
        raise ValueError(f"output: expected the name of a new .json file, found '{output}'.")
    parser = dataset_overlay(dataset)
    parts = split_cases(parser["layout"], dataset_dir, splits or parser.get_parsed_content("splits")).parts
    cases = parts["train"]
    names = list(cases)
    known_labels = _labeled(cases, labeled)
    if len(known_labels) == len(names):
        raise ValueError(f"all {len(names)} training cases of '{dataset_dir}' are labelled; see --labeled.")
    scores = None if quality is None else _scores(quality, cases, dataset_dir)
    if strategy == "random":
        free = [i for i in range(len(names)) if i not in known_labels]
        drawn = np.random.default_rng(seed).permutation(free)[:count].tolist()
        choices = [Choice(index, 0.0, (index,)) for index in drawn]
    else:
        features = np.stack(in_threads(_features, cases.values(), "reading the images"))
        choices = choose(similarities(features), count, known_labels, None if scores is None else 1 - scores)
    print(f"{len(known_labels)} of {len(names)} training cases are labelled. Next:")
    lines = [["", "case", "images", "why"]]
    for rank, choice in enumerate(choices, start=1):
        why = "drawn at random" if strategy == "random" else _reason(choice, len(names), known_labels, scores)
        lines.append([str(rank), names[choice.case], str(len(cases[names[choice.case]])), why])
    print("\n".join(aligned(lines)))
    if target:
        order = [*known_labels, *(choice.case for choice in choices)]
        order += [i for i in range(len(names)) if i not in order]
        _write_list(target, [cases[names[i]] for i in order], parts, _described(Path(dataset_dir)))
        picture = target.with_name(f"{target.stem}_montage.png")
        _draw(picture, [(names[choice.case], cases[names[choice.case]]) for choice in choices])
        print(f"{target}, {picture}")


def _labeled(cases: Mapping[str, Case], labeled: int | None) -> list[int]:
    """Indices of the labelled cases."""
    if labeled is None:
        return [i for i, case in enumerate(cases.values()) if all("label" in record for record in case)]
    if isinstance(labeled, bool) or not isinstance(labeled, int) or not 0 <= labeled <= len(cases):
        raise ValueError(f"labeled: expected a whole number in 0..{len(cases)}, found {labeled!r}.")
    return list(range(labeled))


def _features(case: Case) -> NDArray[np.float64]:
    """Features of a case: the mean over its images."""
    volumes = [load({"image": record["image"]}, "thickest")["image"] for record in case]
    return np.mean([case_features(volume) for volume in volumes], axis=0)


def _scores(table: str, cases: Mapping[str, Case], dataset_dir: str) -> NDArray[np.float64]:
    """The worst score of each case's images and classes."""
    if not os.path.isfile(table):
        raise FileNotFoundError(f"quality: no file '{table}'.")
    worst: dict[str, float] = {}
    with open(table, newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            try:
                name, score = row["case"], float(row["score"])
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"quality: '{table}' is not a quality.csv: expected columns case and score.") from None
            worst[name] = min(score, worst.get(name, 1.0))
    root = source_root(dataset_dir)
    scores = []
    for name, case in cases.items():
        stems = [_stem(os.path.relpath(record["image"], root)) for record in case]
        found = [worst[stem] for stem in stems if stem in worst]
        if not found:
            raise ValueError(f"quality: '{table}' has no result of case '{name}', such as '{stems[0]}'.")
        scores.append(min(found))
    return np.clip(scores, 0, 1)


def _stem(path: str) -> str:
    return Path(path).as_posix().removesuffix(".gz").rsplit(".", 1)[0]


def _reason(choice: Choice, total: int, labeled: Sequence[int], scores: NDArray[np.float64] | None) -> str:
    others = len(choice.members) - 1
    like = f"nearest to {others} other{'' if others == 1 else 's'} of {total}" if others else "unlike all others"
    parts = [f"{like}, covers {choice.gain:.0%} more" if labeled or others else like]
    if scores is not None:
        rank = int((scores < scores[choice.case]).sum()) + 1
        parts.append(f"score {scores[choice.case]:.2f}, number {rank} from the worst")
    return "; ".join(parts)


def _described(source: Path) -> dict[str, Any]:
    """What a datalist, or nnU-Net's folder, says beside its cases.

    These are names and values of the classes, the slice axis, and that there is no validation on purpose.
    """
    source = description_of(source) or source
    if source.suffix.lower() != ".json":
        return {}
    names, values = read_class_values(source)
    described = {"labels": names, "label_values": values, "slice_axis": read_slice_axis(source)}
    found: dict[str, Any] = {key: value for key, value in described.items() if value}
    if parse_json(read_text(source), source, "datalist").get("validation") == []:
        found["validation"] = []
    return found


def _write_list(
    target: Path, training: Sequence[Case], parts: Mapping[str, Mapping[str, Case]], described: Mapping[str, Any]
) -> None:
    """Write the datalist, paths relative to its folder."""
    lists = {"training": training}
    lists |= {
        key: [*parts[part].values()] for key, part in (("validation", "val"), ("test", "test")) if parts.get(part)
    }

    def entry(record: Mapping[str, str]) -> dict[str, str]:
        files = {key: os.path.relpath(record[key], target.parent) for key in ("image", "label") if key in record}
        return {**files, "case": record["case"]}

    content: dict[str, Any] = dict(described) | {
        key: [entry(record) for case in of_key for record in case] for key, of_key in lists.items()
    }
    write_text(target, json.dumps(content, indent=1) + "\n")


def _draw(target: Path, cases: Sequence[tuple[str, Case]]) -> None:
    """A picture of the middle slice of each case's first image."""
    figure = Figure(figsize=(2.6 * len(cases), 2.9), layout="constrained")
    axes = figure.subplots(1, len(cases), squeeze=False)[0]
    for axis, (name, case) in zip(axes, cases, strict=True):
        volume = load({"image": case[0]["image"]}, "thickest")["image"].numpy()
        shown = volume[..., volume.shape[-1] // 2].transpose(2, 1, 0).astype(np.float64)
        low, high = np.percentile(shown, [0, 99.5])
        shown = np.clip((shown - low) / max(high - low, 1e-9), 0, 1)
        axis.imshow(shown if shown.shape[-1] == 3 else shown[..., 0], cmap="gray")
        axis.set_title(Path(name).name, fontsize=8)
        axis.axis("off")
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=90)
