"""Time and Dice of one round of annotation, training and drafts, starting from the weights in ``models/``."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import redirect_stdout
from pathlib import Path

import fire
import numpy as np

from bundle.label.demo import mean_dice
from bundle.label.server import LabelServer, app_folder
from bundle.share.pack import main as pack
from bundle.workflows import ROOT
from scripts.phantoms import make_phantom_cohort

__all__ = ["main"]

MODEL = "semsim_acdc_segmentation"
ANNOTATED, DRAFTS = 2, 10


def main(unlabeled: int = 10, minutes: float | None = None, output: str = str(ROOT / "label-round")) -> None:
    """Annotate two synthetic hearts, train in the server's time limit, segment the next ten.

    The bundle is packed as users pack it. The studies are end-diastolic frames of phantom patients: the first two are
    annotated and the next ten segmented, for any number of studies.

    Args:
        unlabeled: number of studies without a label, at least ten.
        minutes: time limit of the training; None: the server's default.
        output: working folder; its synthetic hearts are used again.
    """
    folder = Path(output).resolve()
    studies = folder / "studies"
    for old in (studies, folder / "app"):
        shutil.rmtree(old, ignore_errors=True)
    studies.mkdir(parents=True)
    count = ANNOTATED + max(DRAFTS, unlabeled)
    cohort = Path(make_phantom_cohort(folder / "cohort", patients=(count, 0, 0)))
    labels = {}
    for patient in sorted(cohort.glob("patient*")):
        label = sorted(patient.glob("*_gt.nii.gz"))[0]
        name = label.name.removesuffix("_gt.nii.gz")
        shutil.copy(patient / f"{name}.nii.gz", studies)
        labels[name] = label
    names = sorted(labels)
    drafts = names[ANNOTATED : ANNOTATED + DRAFTS]
    with redirect_stdout(None):
        pack("acdc", str(ROOT / "models" / "model.pt"), str(app_folder(folder) / "model"))
    print(f"{count - ANNOTATED} unlabelled studies, {len(os.sched_getaffinity(0))} core(s)", flush=True)

    def scores() -> str:
        found = [mean_dice(server.infer(MODEL, name, folder / f"{name}.nrrd"), labels[name]) for name in drafts]
        return f"mean Dice of the next {DRAFTS} drafts {np.mean(found):.3f} (lowest {min(found):.3f})"

    with LabelServer(folder, studies, [MODEL], environment={"MONAI_LABEL_AUTO_UPDATE_SCORING": "false"}) as server:
        print(f"before: {scores()}", flush=True)
        begin = time.perf_counter()
        for name in names[:ANNOTATED]:
            server.save_label(name, labels[name], segments=server.info()["labels"])
        status, log = server.train(MODEL, **({} if minutes is None else {"minutes": minutes}))
        trained = time.perf_counter()
        print("".join(f"    {line}\n" for line in log.splitlines() if " - scripts.monai_label." in line), end="")
        server.infer(MODEL, drafts[0], folder / f"{drafts[0]}.nrrd")
        ended = time.perf_counter()
        print(f"training {status}: {(trained - begin) / 60:.1f} min, then {ended - trained:.1f} s to the next draft")
        print(f"after: {scores()}")
    print(f"processor time of the server and its training: {os.times().children_user / 60:.1f} min")


if __name__ == "__main__":
    fire.Fire(main)
