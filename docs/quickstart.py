# %% [markdown]
# # Quickstart
#
# From a packed bundle to a network of your own, in cells. It is a script too: `python docs/quickstart.py`, from the
# bundle's root, in its environment. As a notebook: `pip install jupytext`, then
# `jupytext --to notebook docs/quickstart.py`.
#
# Synthetic hearts stand in for your images, so that it runs anywhere; where your own come in is said at each step.

# %%
import os
import sys
from pathlib import Path

ROOT = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "configs" / "train.json").is_file())
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

from bundle.report.command import main as report
from bundle.share.pack import main as pack
from bundle.workflows import execute
from scripts.phantoms import make_phantom_cohort

OUTPUT = Path(os.environ.get("QUICKSTART_OUTPUT", ROOT / "quickstart"))
EPOCHS = int(os.environ.get("QUICKSTART_EPOCHS", "10"))

# %% [markdown]
# ## 1. Load a packed bundle and segment a NIfTI
#
# `pack` makes of weights a bundle that stands alone; you may as well have been sent one. `image` is any short-axis
# cine volume of yours.

# %%
pack("acdc", str(ROOT / "models" / "model.pt"), str(OUTPUT / "packed"))
packed = OUTPUT / "packed" / "semsim_acdc_segmentation"

cohort = Path(make_phantom_cohort(OUTPUT / "cohort", patients=(45, 0, 0), size=(72, 88), slices=(5, 7)))
image = sorted(cohort.glob("patient*/*_frame??.nii.gz"))[0]

workflow = ConfigWorkflow(
    config_file=str(packed / "configs" / "inference.json"),
    meta_file=str(packed / "configs" / "metadata.json"),
    logging_file=False,
    workflow_type="infer",
    bundle_root=str(packed),
    dataset_dir=str(image),
    output_dir=str(OUTPUT / "segmented"),
)
workflow.initialize()
workflow.run()
workflow.finalize()

# %% [markdown]
# ## 2. Look at it
#
# The label map lies on the image's own grid: 1 right ventricle, 2 myocardium, 3 left ventricle. These weights learnt
# from real hearts; on a synthetic one they are at a loss.


# %%
def show(image: Path, label: Path, title: str) -> None:
    """The slice with most foreground, with the contours of the classes."""
    voxels, classes = (np.asarray(nib.load(path).dataobj) for path in (image, label))
    k = int((classes > 0).sum(axis=(0, 1)).argmax())
    figure, axes = plt.subplots(figsize=(4, 4))
    axes.imshow(voxels[..., k].T, cmap="gray")
    for number, colour in enumerate(("orangered", "seagreen", "royalblue"), start=1):
        if (classes[..., k] == number).any():
            axes.contour((classes[..., k] == number).T, levels=[0.5], colors=colour)
    axes.set_title(title)
    axes.axis("off")
    figure.savefig(OUTPUT / f"{title}.png")
    plt.close(figure) if plt.get_backend().lower() == "agg" else plt.show()


(segmented,) = (OUTPUT / "segmented").rglob("*_seg.nii.gz")
show(image, segmented, "packed bundle")

# %% [markdown]
# ## 3. Train on five labelled and forty unlabelled volumes
#
# The folder is laid out as your own may be: `images/NAME.nii.gz`, and `labels/NAME.nii.gz` for those that have a label.
# That is all that tells labelled from unlabelled. Of the five, one validates. Put your folder in the place of `own`,
# your classes in the place of `classes`, and take more epochs, a larger image and `semsim` where a GPU is at hand
# (docs/own_data.md).

# %%
own = OUTPUT / "own"
for number, patient in enumerate(sorted(cohort.glob("patient*"))):
    volume = sorted(patient.glob("*_frame??.nii.gz"))[0]
    for folder, source in (("images", volume), ("labels", Path(str(volume).replace(".nii.gz", "_gt.nii.gz")))):
        target = own / folder / volume.name
        if (folder == "images" or number < 5) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)

classes = {"num_classes": 4, "class_names": {"1": "RV", "2": "Myo", "3": "LV"}}
data = {"dataset_dir": str(own), "cache_dir": str(OUTPUT / "cache"), "image_size": 64, **classes}
files = ["datasets/custom.json", "methods/semsim_minus.json"]
execute(
    "train",
    ["train.json", *files],
    bundle_root=str(ROOT),
    output_dir=str(OUTPUT / "run"),
    resume=True,
    epochs=EPOCHS,
    batch_size=4,
    **data,
    **{"train#trainer#epoch_length": 60},
)

# %% [markdown]
# ## 4. See what it is worth
#
# One page: scores, pictures, curves, and what went wrong. Open `report.html`.

# %%
report(str(OUTPUT / "run"), config_file=[str(ROOT / "configs" / file) for file in files], **data)
