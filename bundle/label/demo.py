"""The demonstration behind ``make label-demo``: a clinician's use of the bundle in a MONAI Label server."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch

from bundle.label.server import LabelServer, app_folder, place_bundle
from bundle.workflows import ROOT
from scripts.metrics import dice
from scripts.phantoms import make_phantom_cohort

__all__ = ["main"]

MODEL = "semsim_demo_segmentation"
LABELED = 4
MINUTES = 1


def main(output: Path = ROOT / "label-demo") -> None:
    """Start a server on synthetic studies, segment one, annotate a few, train with all, segment it again.

    Args:
        output: folder of the app, the studies and the answers; replaced.
    """
    start = time.perf_counter()
    shutil.rmtree(output, ignore_errors=True)
    studies = output / "studies"
    studies.mkdir(parents=True)
    cohort = Path(make_phantom_cohort(output / "cohort", patients=(10, 0, 0), size=(72, 88), slices=(5, 7)))
    labels = {}
    for image in sorted(cohort.glob("patient*/*_frame??.nii.gz")):
        name = image.name.removesuffix(".nii.gz")
        shutil.copy(image, studies)
        labels[name] = image.with_name(f"{name}_gt.nii.gz")
    names = sorted(labels)
    # one frame of each of the first patients
    annotated, unseen = names[: 2 * LABELED : 2], names[-1]
    torch.manual_seed(0)
    place_bundle(
        app_folder(output) / "model" / MODEL,
        {"image_size": 64, "batch_size": 4, "learning_rate": 0.05},
    )

    conf = {"epistemic_model": MODEL, "epistemic_simulation_size": "3"}
    with LabelServer(output, studies, [MODEL], conf, {"MONAI_LABEL_AUTO_UPDATE_SCORING": "false"}) as server:
        print(f"Server: {server.url} (reachable from this machine only), log {server.log}")
        info = server.info()
        print(f"GET  /info/             models {list(info['models'])}, labels {info['labels']}")
        print(f"                        {info['datastore']['total']} studies")
        answer = server.infer(MODEL, unseen, output / "before.nrrd")
        print(f"POST /infer/{MODEL}")
        print(f"                        {unseen}, untrained network: mean Dice {mean_dice(answer, labels[unseen]):.3f}")
        status, _ = server.score(MODEL, max_samples=3, max_workers=1)
        print(f"POST /scoring/{MODEL} {status}")
        for name, study in server.datastore()["objects"].items():
            if "epistemic_entropy" in study["image"]["info"]:
                print(f"                        {name}: entropy {study['image']['info']['epistemic_entropy']:.3f}")
        for name in annotated:
            server.save_label(name, labels[name], segments=info["labels"])
        print(f"PUT  /datastore/label   {', '.join(annotated)}")
        begin = time.perf_counter()
        status, log = server.train(MODEL, minutes=MINUTES)
        print(f"POST /train/{MODEL} {status} in {time.perf_counter() - begin:.0f} s")
        print("".join(f"    {line}\n" for line in log.splitlines() if " - scripts.monai_label." in line), end="")
        answer = server.infer(MODEL, unseen, output / "after.nrrd")
        print(f"POST /infer/{MODEL}")
        print(f"                        {unseen}, trained network: mean Dice {mean_dice(answer, labels[unseen]):.3f}")
    record = json.loads((server.app / "model" / MODEL / "models" / "model.json").read_text(encoding="utf-8"))
    print(
        f"The weights' record: {record['labeled_cases']} labelled and {record['unlabeled_cases']} unlabelled studies."
    )
    print(f"{time.perf_counter() - start:.0f} s in all. Start a server of your own: docs/monai-label.md")


def mean_dice(answer: Path, label: Path) -> float:
    """Mean Dice of the three structures, an absent one in both counting as 1."""
    found, truth = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (answer, label))
    return float(np.mean([dice(found == k, truth == k) for k in (1, 2, 3)]))


if __name__ == "__main__":
    main()
