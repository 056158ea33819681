"""``make federated-demo``: two sites in NVFlare's simulator, one of them without labels."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv
from nvflare.recipe.utils import set_per_site_config

from bundle.federated import client
from bundle.federated.global_model import main as global_model
from bundle.federated.sites import mean_dice
from bundle.workflows import ROOT, execute
from scripts.networks import UNet
from scripts.phantoms import make_phantom_cohort
from scripts.utils.files import write_text
from scripts.utils.provenance import PHANTOM_MARKER
from scripts.utils.tensors import save_tensors

__all__ = ["main"]

ROUNDS, STEPS = 5, 60
LABELED = 3
JOB = "semsim"
SITES = {"labelled": "supervised", "unlabelled": "fixmatch"}
NETWORK = {"image_size": 48, "batch_size": 2, "learning_rate": 0.05}


def main(output: Path = ROOT / "federated-demo") -> None:
    """Split a synthetic cohort into two sites, train at both and at the labelled one alone, evaluate both networks.

    Args:
        output: folder of the cohort, the sites, NVFlare's workspace and the weights; removed first.
    """
    start = time.perf_counter()
    shutil.rmtree(output, ignore_errors=True)
    cohort = Path(make_phantom_cohort(output / "cohort", patients=(20, 0, 8), size=(88, 104)))
    cases = json.loads((cohort / "splits.json").read_text(encoding="utf-8"))["train"]
    parts = {"labelled": cases[:LABELED], "unlabelled": cases[LABELED:]}
    files = {name: _site(output, cohort, name, part) for name, part in parts.items()}

    torch.manual_seed(0)
    save_tensors(UNet().state_dict(), output / "initial.pt")  # or the server draws other weights
    recipe = FedAvgRecipe(
        name=JOB,
        model=UNet(),
        initial_ckpt=str(output / "initial.pt"),
        min_clients=len(files),
        num_rounds=ROUNDS,
        train_script=client.__file__,
    )
    arguments = {name: f"--bundle_root {ROOT} --options {file}" for name, file in files.items()}
    set_per_site_config(recipe, {name: {"train_args": words} for name, words in arguments.items()})
    # the server imports the network's class from here
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = recipe.execute(SimEnv(clients=list(files), workspace_root=str(output / "nvflare")))
    (weights,) = Path(run.get_result()).rglob("FL_global_model.pt")

    records = [str(output / name / "run" / "model_last.json") for name in files]
    global_model(str(weights), records, str(output / "model.pt"))
    alone = json.loads(files["labelled"].read_text(encoding="utf-8"))
    del alone["files"], alone["rounds"]
    execute(
        "train",
        ["train.json", f"methods/{SITES['labelled']}.json"],
        **{**alone, "output_dir": str(output / "alone"), "epochs": ROUNDS, "bundle_root": str(ROOT)},
    )
    networks = {"both sites": output, "the labelled site alone": output / "alone"}
    shared = {"dataset_dir": str(cohort), "splits": str(cohort / "splits.json"), "image_size": NETWORK["image_size"]}
    for folder in networks.values():
        where = {"checkpoint": str(folder / "model.pt"), "output_dir": str(folder / "evaluation")}
        execute("infer", ["train.json", "evaluate.json"], bundle_root=str(ROOT), part="test", **shared, **where)
    for title, folder in networks.items():
        print(f"{title}: mean DSC {mean_dice(folder / 'evaluation'):.3f} on the test patients")
    print(f"{time.perf_counter() - start:.0f} s in all.")


def _site(output: Path, cohort: Path, name: str, cases: Sequence[str]) -> Path:
    """Write a site's cases, for the unlabelled site without labels, and its options; return the file of the options."""
    place = output / name
    labeled = len(cases) if name == "labelled" else 0
    for case in cases:
        shutil.copytree(
            cohort / case, place / "images" / case, ignore=None if labeled else shutil.ignore_patterns("*_gt*")
        )
    shutil.copy(cohort / PHANTOM_MARKER, place / "images")
    write_text(place / "splits.json", json.dumps({"train": list(cases), "val": []}))
    options = {
        "files": [f"methods/{SITES[name]}.json"],
        "rounds": ROUNDS,
        "labeled": labeled,
        "dataset_dir": str(place / "images"),
        "splits": str(place / "splits.json"),
        "cache_dir": str(place / "cache"),
        "output_dir": str(place / "run"),
        "train#trainer#epoch_length": STEPS,
        "val_interval": ROUNDS + 1,  # no site has validation cases
        **NETWORK,
    }
    write_text(place / "site.json", json.dumps(options, indent=4))
    return place / "site.json"


if __name__ == "__main__":
    main()
