"""One page about a run, or about several side by side: ``python -m bundle report``."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bundle.report import several, single
from bundle.report.cases import load_cases
from bundle.report.page import Code, Section, Text, write_page
from bundle.report.runs import Run, find_runs, words
from bundle.report.subject import Subject, plural
from scripts.utils.provenance import code_version

__all__ = ["main"]

PARTS = 6  # of a page, each with a step of the progress bar


def main(
    runs: str | Sequence[str],
    config_file: str | Sequence[str] = (),
    part: str = "val",
    network: str = "best",
    evaluation: str | None = None,
    output: str | None = None,
    millimetres: bool | None = None,
    **overrides: Any,
) -> None:
    """Write one HTML file about trained networks: scores, pictures, curves, volumes, and problems.

    All figures are the evaluation's; a missing evaluation is made. The network runs once for its predictions and
    features, which are cached in the config's ``cache_dir`` for later reports on the same weights and data. The page
    contains slices of the images: share it under the data's terms.

    Args:
        runs: folder of a training, of weights with their record, or of a comparison with all its runs; several,
            separated by commas.
        config_file: config files of the training after ``configs/train.json``, separated by commas. A comparison's runs
            have their own.
        part: evaluated part of the data set.
        network: ``best`` (``model.pt``) or ``last`` (``model_last.pt``).
        evaluation: folder of the evaluation of one run; default: ``PART-NETWORK`` in the run's folder, made if missing.
        output: the HTML file; default: ``report.html`` in the evaluation's folder, for several runs in the first
            folder.
        millimetres: whether the files' spacing is true, so that volumes are in mL and distances in mm. Default: yes,
            unless a file has none (voxels of 1 x 1 x 1 mm).
        **overrides: config overrides of the run, for example ``--dataset_dir DIR``. The image size and the number of
            labelled cases come from the weights' record.

    Raises:
        ValueError: if an option, a configuration, the evaluation or a file is invalid.
        FileNotFoundError: if a run, its weights, an evaluation or data are missing.
    """
    start = time.perf_counter()
    given: dict[str, Any] = {
        "runs": runs,
        "config_file": config_file,
        "part": part,
        "network": network,
        "evaluation": evaluation,
    }
    given |= {"output": output, "millimetres": millimetres, **overrides}
    if millimetres is not None and not isinstance(millimetres, bool):
        raise ValueError(f"millimetres: expected True or False, found {millimetres!r}.")
    found = find_runs(runs, config_file, network, part, evaluation, overrides)
    first = found[0]
    folder = first.evaluation if len(found) == 1 else Path(words(runs)[0])
    target = Path(output) if output else folder / "report.html"
    with tqdm(total=len(found) + PARTS, desc="report", disable=None) as bar:

        def tick(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        subjects: dict[str, Subject] = {}
        for run in found:
            tick(f"cases of {run.name}")
            subjects[run.name] = _subject(run, millimetres)
        if len(found) == 1:
            sections = single.sections(subjects[first.name], tick)
        else:
            sections = several.report_sections(subjects, {run.name: run.folder for run in found}, tick)
    sections.append(Section("Command", [Code(_command(given)), Text(f"Code: {code_version()}.")]))
    titled = first.name if len(found) == 1 else f"{len(found)} runs"
    data = first.record.get("data", "unnamed data")
    write_page(target, f"{titled}: {data}, part {part}", _subtitle(subjects, network), sections)
    print(f"{target}, {target.stat().st_size / 1e6:.1f} MB, in {time.perf_counter() - start:.0f} s")


def _subject(run: Run, millimetres: bool | None) -> Subject:
    cases = load_cases(run)
    stated = all(case.spacing_stated for case in cases)
    return Subject(
        run, run.scores, cases, stated if millimetres is None else millimetres and cases[0].spacing is not None
    )


def _subtitle(subjects: dict[str, Subject], network: str) -> str:
    one = next(iter(subjects.values()))
    images = plural(len(one.cases), "volume" if one.cases[0].spacing else "image")
    patients = plural(len({case.patient for case in one.cases}), "case")
    return f"{network.capitalize()} network on {images} of {patients}"


def _command(given: dict[str, Any]) -> str:
    """The command line with these arguments."""
    options = {key: value for key, value in given.items() if value not in ((), None)}
    listed = {
        key: ",".join(words(value)) if isinstance(value, (list, tuple)) else value for key, value in options.items()
    }
    return shlex.join(["python", "-m", "bundle", "report", *(w for k, v in listed.items() for w in (f"--{k}", str(v)))])
