"""The evaluated cases: image, label and prediction of each, computed once and cached with the preprocessed volumes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Orientationd
from numpy.typing import NDArray

from bundle.report.runs import Run
from scripts.data import LoadImageVolumed, ThroughPlaneLastd
from scripts.data.cache import stored_files
from scripts.data.readers import is_photograph
from scripts.handlers.report import case_names
from scripts.utils.errors import root_cause
from scripts.utils.files import replacing
from scripts.utils.provenance import file_digest
from scripts.utils.threads import in_threads

__all__ = ["Case", "load_cases", "turning", "upright"]

FORMAT = 1  # increase when the cached data change their meaning
LARGEST = 512  # minimum pixels per side of a picture


@dataclass(frozen=True)
class Case:
    """One evaluated volume or photograph.

    Attributes:
        name: its name in the evaluation.
        patient: its patient in the data set.
        file: the image's file.
        image: uint8 ``[slices, rows, columns, channels]``, scaled from its .5th to its 99.5th percentile; large
            photographs are subsampled.
        label: class of each pixel, uint8 ``[slices, rows, columns]``.
        prediction: likewise.
        size: size of the file's grid: rows, columns, slices.
        spacing: size of a voxel in the same order, mm; None for photographs.
        labeled: voxels of each class, background first, in the label ``[C]``, on the file's own grid.
        predicted: likewise in the prediction.
        intensity: mean and standard deviation of the image, scaled from its minimum to its maximum to [0, 1].
    """

    name: str
    patient: str
    file: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    size: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    labeled: NDArray[np.int64]
    predicted: NDArray[np.int64]
    intensity: tuple[float, float]

    @property
    def spacing_stated(self) -> bool:
        """Whether the file has a spacing; voxels of 1 x 1 x 1 mm indicate a file without one."""
        return self.spacing is not None and any(abs(side - 1) > 1e-6 for side in self.spacing)

    @property
    def millilitres(self) -> float:
        """Volume of a voxel in mL."""
        assert self.spacing is not None
        return float(np.prod(self.spacing)) / 1000

    @cached_property
    def largest_slice(self) -> int:
        """The slice with most foreground in label and prediction."""
        return int(((self.label > 0) | (self.prediction > 0)).sum(axis=(1, 2)).argmax())


def load_cases(run: Run) -> list[Case]:
    """The evaluated cases of a run, in the order of its evaluation; missing scores and predictions are computed.

    The network runs unless an earlier report on these weights, settings and files has cached every case. A missing
    evaluation is made at the same time.

    Raises:
        ValueError: if the evaluation has other cases than the configuration, or a file is faulty.
        FileNotFoundError: if data are missing.
    """
    records: list[dict[str, str]] = run.get("dataset#data")
    names = case_names([record["image"] for record in records])
    kept = Path(run.get("cache_dir")) / "report"
    paths = in_threads(lambda record: _path(kept, run.settings, record), records, "searching for earlier predictions")
    scored = (run.evaluation / "per_volume.csv").is_file()
    if scored and (found := set(run.scores.cases)) != set(names):
        odd = sorted(found ^ set(names))
        raise ValueError(
            f"{run.evaluation}: expected the cases of part '{run.part}' of the data: {odd[0]} is in only one of "
            "both. Give its --dataset_dir and config files, or another --evaluation."
        )
    if not scored or not all(path.is_file() for path in paths):
        _predict(run, {record["image"]: path for record, path in zip(records, paths, strict=True)}, scored)
    cases = [_read(*job) for job in zip(names, records, paths, strict=True)]
    if (count := len(run.scores.classes)) != run.get("num_classes") - 1:
        raise ValueError(f"{run.evaluation}: has {count} classes, the network {run.get('num_classes') - 1}.")
    order = {name: number for number, name in enumerate(run.scores.cases)}
    return sorted(cases, key=lambda case: order[case.name])


def turning(preprocessing: Compose) -> list[Orientationd | ThroughPlaneLastd]:
    """The steps of a preprocessing that turn a volume, for :func:`upright`."""
    return [step for step in preprocessing.flatten().transforms if isinstance(step, (Orientationd, ThroughPlaneLastd))]


def upright(image: MetaTensor, transforms: Sequence[Any] = ()) -> MetaTensor:
    """``[C, x, y, slices]`` of an image ``[C, ...]`` on its file's grid, in the orientation of the network's input."""
    steps = transforms or [Orientationd("image", axcodes="LPS", labels=None), ThroughPlaneLastd("image")]
    turned: MetaTensor = Compose(list(steps))({"image": image})["image"]
    return turned


def _path(folder: Path, settings: str, record: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(f"{FORMAT} {settings}".encode())
    for key in ("image", "label"):
        digest.update(file_digest(*stored_files(Path(record[key]))).encode())
    return folder / f"{digest.hexdigest()}.npz"


def _predict(run: Run, paths: Mapping[str, Path], scored: bool) -> None:
    """Run the evaluation and cache its predictions; existing scores are kept."""
    with TemporaryDirectory() as nowhere, contextlib.ExitStack() as stack:
        if scored:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # the same table again
        workflow = run.workflow(**({"output_dir": nowhere} if scored else {}))
        try:
            workflow.initialize()
            steps = turning(workflow.parser.get_parsed_content("preprocessing"))
            keeper = _Keeper(paths, steps, run.get("num_classes"))
            keeper.attach(workflow.parser.get_parsed_content("evaluator"))
            workflow.run()
            workflow.finalize()
        except Exception as error:
            if isinstance(cause := root_cause(error), (ValueError, FileNotFoundError)):
                raise cause from None
            raise


class _Keeper:
    """Handler that caches image, label and prediction of every case of an evaluator."""

    def __init__(self, paths: Mapping[str, Path], transforms: Sequence[Any], num_classes: int) -> None:
        self.paths = {os.path.abspath(file): path for file, path in paths.items()}
        self.transforms = transforms
        self.num_classes = num_classes
        self.load = Compose([LoadImageVolumed("image"), EnsureChannelFirstd("image")])

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)

    def _keep(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            file = os.path.abspath(str(item["image"].meta["filename_or_obj"]))
            image: MetaTensor = self.load({"image": file})["image"]
            maps = [torch.as_tensor(np.asarray(item[key].cpu())).to(image.dtype) for key in ("label", "pred")]
            # together, to get the same orientation
            joined = MetaTensor(torch.cat([image.as_tensor(), *maps]), affine=image.affine)
            volume = upright(joined, self.transforms)
            spacing = None if is_photograph(file) else np.asarray(volume.pixdim, dtype=np.float64)[[1, 0, 2]]
            with replacing(self.paths[file]) as temporary, temporary.open("wb") as stream:
                np.savez_compressed(stream, **_facts(volume.numpy(), spacing, self.num_classes))


def _facts(volume: NDArray[Any], spacing: NDArray[np.float64] | None, num_classes: int) -> dict[str, Any]:
    """The cached data of a case ``[C + 2, x, y, slices]`` or, for a photograph, ``[C + 2, x, y]``."""
    stack = volume[..., None] if volume.ndim == 3 else volume
    stack = stack.transpose(3, 2, 1, 0)  # slices, rows, columns, channels
    image, label, prediction = stack[..., :-2].astype(np.float64), stack[..., -2], stack[..., -1]
    within = None if spacing is None else (0, 1, 2)  # a volume's channels have different units, colours belong together
    low, high = np.percentile(image, [0.5, 99.5], axis=within)
    dark, bright = image.min(axis=within), image.max(axis=within)
    step = -(-max(image.shape[1:3]) // LARGEST)
    shown = np.clip((image[:, ::step, ::step] - low) / np.maximum(high - low, 1e-9), 0, 1)
    scaled = (image - dark) / np.maximum(bright - dark, 1e-9)
    return {
        "image": (255 * shown).round().astype(np.uint8),
        "label": label[:, ::step, ::step].astype(np.uint8),
        "prediction": prediction[:, ::step, ::step].astype(np.uint8),
        "size": np.array([*image.shape[1:3], image.shape[0]]),
        "spacing": np.empty(0) if spacing is None else spacing,
        "labeled": np.bincount(label.astype(np.int64).ravel(), minlength=num_classes),
        "predicted": np.bincount(prediction.astype(np.int64).ravel(), minlength=num_classes),
        "intensity": np.array([scaled.mean(), scaled.std()]),
    }


def _read(name: str, record: Mapping[str, str], path: Path) -> Case:
    with np.load(path, allow_pickle=False) as kept:
        facts = {key: kept[key] for key in kept.files}
    rows, columns, slices = (int(n) for n in facts["size"])
    spacing = tuple(float(side) for side in facts["spacing"])
    return Case(
        name=name,
        patient=record.get("case", name),
        file=record["image"],
        image=facts["image"],
        label=facts["label"],
        prediction=facts["prediction"],
        size=(rows, columns, slices),
        spacing=(spacing[0], spacing[1], spacing[2]) if spacing else None,
        labeled=facts["labeled"],
        predicted=facts["predicted"],
        intensity=(float(facts["intensity"][0]), float(facts["intensity"][1])),
    )
