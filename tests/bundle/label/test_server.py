"""A real MONAI Label server with the stock app, driven over HTTP. The tests of a class share one server, in order."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monailabel.datastore.utils.colors import GENERIC_ANATOMY_COLORS

from bundle.label.server import LabelServer, app_folder, place_bundle
from scripts.networks import UNet
from scripts.phantoms import make_phantom_cohort

ROOT = Path(__file__).resolve().parents[3]
A, B = "semsim_a_segmentation", "semsim_b_segmentation"
SEGMENTS = ["right ventricle of heart", "myocardium", "left ventricle of heart"]
NETWORKS = ["model.pt", "model_previous.pt", "model_candidate.pt"]
SMALL = {"image_size": 32, "batch_size": 2}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Ten small volumes: image and label by name."""
    root = tmp_path_factory.mktemp("phantom") / "cohort"
    make_phantom_cohort(root, patients=(4, 1, 0), size=(40, 48), spacing=(4.0, 4.4), slices=(3, 4))
    images = sorted(root.glob("patient*/*_frame??.nii.gz"))
    return {p.name[:-7]: (p, p.with_name(p.name.replace(".nii.gz", "_gt.nii.gz"))) for p in images}


def make_bundle(app: Path, name: str, **changes: object) -> Path:
    """A bundle whose untrained network predicts every class somewhere."""
    torch.manual_seed(0)
    network = UNet().eval()
    with torch.no_grad():
        network.head.bias -= network(torch.rand(8, 1, 32, 32)).mean((0, 2, 3))
    return place_bundle(app / "model" / name, {**SMALL, **changes}, network)


def reference(bundle: Path, image: Path, folder: Path) -> nib.Nifti1Image:
    """Result of the bundle's `inference.json` for an image, in a separate process."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--dataset_dir", str(image), "--output_dir", str(folder)]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return nib.load(next(folder.rglob("*_seg.nii.gz")))


def same(answer: Path, expected: nib.Nifti1Image) -> bool:
    """Whether 3D Slicer gets the result of inference.json."""
    found = sitk.ReadImage(str(answer))
    assert found.GetPixelID() == sitk.sitkUInt8
    array = np.asarray(expected.dataobj)
    if array.ndim == 3 and array.shape[2] > 1:  # a photograph has no position
        np.testing.assert_allclose(found.GetSpacing(), expected.header.get_zooms(), atol=1e-4)
        np.testing.assert_allclose(np.multiply(found.GetOrigin(), [-1, -1, 1]), expected.affine[:3, 3], atol=1e-3)
    return np.array_equal(sitk.GetArrayFromImage(found).T.squeeze(), array.squeeze())


def digest(bundle: Path) -> str:
    return hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()


def wait_for(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.2)


class TestNifti:
    @pytest.fixture(scope="class")
    @staticmethod
    def folder(tmp_path_factory: pytest.TempPathFactory, cohort: dict) -> Path:
        folder = tmp_path_factory.mktemp("nifti")
        studies = folder / "studies"
        (studies / "labels" / "original").mkdir(parents=True)
        for name, (image, _) in cohort.items():
            shutil.copy(image, studies / f"{name}.nii.gz")
            # A prediction: its class 9 would stop a training that used it as a label.
            wrong = nib.load(image)
            wrong = nib.Nifti1Image(np.full(wrong.shape, 9, np.uint8), wrong.affine)
            nib.save(wrong, studies / "labels" / "original" / f"{name}.nii.gz")
        app = app_folder(folder)
        make_bundle(app, A)
        fixmatch = json.loads((ROOT / "configs" / "methods" / "fixmatch.json").read_text())["method"]
        other = make_bundle(app, B, method=fixmatch)
        # Other code under the same package name: B's prediction shows whose code ran.
        unet = other / "scripts" / "networks" / "unet.py"
        code = unet.read_text()
        assert code.count("return self.head(") == 1
        unet.write_text(code.replace("return self.head(", "return -self.head("))
        return folder

    @pytest.fixture(scope="class")
    @staticmethod
    def server(folder: Path) -> Iterator[LabelServer]:
        """Requests to this machine bypass a proxy of the environment."""
        conf = {"epistemic_model": A, "epistemic_simulation_size": "2"}
        environment = {"MONAI_LABEL_AUTO_UPDATE_SCORING": "false"}
        with pytest.MonkeyPatch.context() as patch:
            for name in ("http_proxy", "https_proxy"):
                patch.setenv(name, "http://127.0.0.1:9")
            with LabelServer(folder, folder / "studies", [A, B], conf, environment) as server:
                yield server

    @pytest.fixture(scope="class")
    @staticmethod
    def bundles(folder: Path) -> tuple[Path, Path]:
        return folder / "app" / "model" / A, folder / "app" / "model" / B

    def test_info_lists_models_and_labels(self, server: LabelServer) -> None:
        info = server.info()
        assert set(info["models"]) == set(info["trainers"]) == {A, B}
        assert info["labels"] == SEGMENTS
        # viewers colour segments by these names; they know none for the myocardium
        assert {SEGMENTS[0], SEGMENTS[2]} <= GENERIC_ANATOMY_COLORS.keys()
        assert info["models"][A]["labels"] == {name: k for k, name in enumerate(SEGMENTS, 1)}
        assert info["datastore"]["total"] == 10
        assert info["models"][A]["config"]["model_filename"] == NETWORKS
        assert info["trainers"][A]["config"]["minutes"] == 15

    def test_each_copy_predicts_as_its_own_inference_config(
        self, server: LabelServer, bundles: tuple[Path, Path], cohort: dict, tmp_path: Path
    ) -> None:
        name = sorted(cohort)[0]
        expected = [reference(bundle, cohort[name][0], tmp_path / bundle.name) for bundle in bundles]
        assert len(np.unique(np.asarray(expected[0].dataobj))) > 1
        answers = [server.infer(model, name, tmp_path / f"{k}.nrrd") for k, model in enumerate((A, B, A, B))]
        assert [same(answers[k], expected[k % 2]) for k in range(4)] == [True] * 4
        assert not same(answers[0], expected[1])

    def test_zero_labels_end_in_a_clear_error(self, server: LabelServer, bundles: tuple[Path, Path]) -> None:
        before = digest(bundles[0])
        status, log = server.train(A, max_epochs=1)
        assert status == "ERROR"
        assert "error: none of the 0 training slices has a label" in log
        assert digest(bundles[0]) == before

    def test_two_labels_train_with_all_other_studies(
        self, server: LabelServer, bundles: tuple[Path, Path], cohort: dict, tmp_path: Path
    ) -> None:
        names = sorted(cohort)
        before = [digest(bundle) for bundle in bundles]
        untrained = server.infer(A, names[-1], tmp_path / "untrained.nrrd")
        for name in names[:2]:
            server.save_label(name, cohort[name][1], segments=SEGMENTS)
        status, log = server.train(A, max_epochs=1)
        assert status == "DONE", log[-3000:]
        counts = "learning from 2 labelled and 8 unlabelled studies, validating on 0"
        assert log.count(counts) == 2, "at the beginning and at the end"
        assert digest(bundles[0]) != before[0]
        assert digest(bundles[1]) == before[1]
        runs = list((bundles[0] / "output").iterdir())
        assert len(runs) == log.count("is now the network of") == 1, "the options that 3D Slicer sends train once"
        record = json.loads((bundles[0] / "models" / "model.json").read_text())
        assert (record["split"], record["labeled_cases"], record["unlabeled_cases"]) == ("MONAI Label datastore", 2, 8)
        assert json.loads((runs[0] / "model.json").read_text()) == record
        # The served weights were synthetic and have no restrictions; the terms of the studies are not stated.
        assert record["continues_sha256"] == before[0]
        assert record["license"][0].startswith("not stated")
        assert "synthetic" not in " ".join(record["license"]) + (bundles[0] / "models" / "LICENSE.txt").read_text()
        assert "The new network was not compared" in log
        expected = reference(bundles[0], cohort[names[-1]][0], tmp_path / "reference")
        assert same(server.infer(A, names[-1], tmp_path / "answer.nrrd"), expected)
        # Going back is a choice in the viewer's list.
        back = server.infer(A, names[-1], tmp_path / "back.nrrd", model_filename="model_previous.pt")
        assert back.read_bytes() == untrained.read_bytes()
        assert same(server.infer(A, names[-1], tmp_path / "again.nrrd"), expected)

    def test_a_file_that_is_not_there_begins_anew(self, server: LabelServer, bundles: tuple[Path, Path]) -> None:
        before = digest(bundles[0])
        status, log = server.train(A, max_epochs=1, model_filename="anew.pt")
        assert status == "DONE", log[-3000:]
        assert digest(bundles[0]) != before
        record = json.loads((bundles[0] / "models" / "model.json").read_text())
        assert "continues_sha256" not in record
        assert sorted(path.name for path in (bundles[0] / "models").glob("*.pt")) == ["model.pt", "model_previous.pt"]

    def test_validation_studies_do_not_return_as_unlabelled_ones(
        self, server: LabelServer, bundles: tuple[Path, Path], cohort: dict, tmp_path: Path
    ) -> None:
        names = sorted(cohort)
        before = [digest(bundle) for bundle in bundles]
        for name in names[2:5]:
            server.save_label(name, cohort[name][1])
        status, log = server.train(B, max_epochs=1)
        assert status == "DONE", log[-3000:]
        assert "learning from 4 labelled and 5 unlabelled studies, validating on 1" in log
        assert "preprocessing 9 volumes" in log
        assert digest(bundles[0]) == before[0]
        assert log.count("Served network on the validation studies: Dice RV") == 1
        for model, bundle in zip((A, B), bundles, strict=True):
            expected = reference(bundle, cohort[names[-1]][0], tmp_path / model)
            assert same(server.infer(model, names[-1], tmp_path / f"{model}.nrrd"), expected)

    def test_unusable_studies_are_left_out_by_name(
        self, server: LabelServer, bundles: tuple[Path, Path], cohort: dict, tmp_path: Path
    ) -> None:
        """A damaged study, a cine, a label without a name; a label with another order of segments is used."""
        names = sorted(cohort)
        broken = tmp_path / "broken.nii.gz"
        broken.write_bytes(b"no image")
        cine = nib.Nifti1Image(np.zeros((40, 48, 3, 9), np.int16), np.eye(4))
        nib.save(cine, tmp_path / "cine.nii.gz")
        for path in (broken, tmp_path / "cine.nii.gz"):
            server.add_image(path.name.removesuffix(".nii.gz"), path)
        server.save_label(names[0], cohort[names[0]][1], segments=SEGMENTS[1:])
        server.save_label(names[1], cohort[names[1]][1], segments=["LV", "heart_myocardium", "RV"])
        status, log = server.train(A, max_epochs=1)
        for name in ("broken", "cine"):
            server.remove_image(name)
        server.save_label(names[0], cohort[names[0]][1], segments=SEGMENTS)
        server.save_label(names[1], cohort[names[1]][1], segments=SEGMENTS)
        assert status == "DONE", log[-3000:]
        for text in ("broken.nii.gz", "cine.nii.gz", f"the final label of '{names[0]}'"):
            assert sum("Left out: " in line and text in line for line in log.splitlines()) == 2, (
                "at once and at the end"
            )
        swapped = sitk.GetArrayFromImage(sitk.ReadImage(str(bundles[0] / ".cache" / "labels" / f"{names[1]}.nii.gz")))
        label = np.asarray(nib.load(cohort[names[1]][1]).dataobj).T.astype(int)
        np.testing.assert_array_equal(swapped, np.array([0, 3, 2, 1])[label])

    def test_stopping_keeps_the_work(
        self, server: LabelServer, bundles: tuple[Path, Path], cohort: dict, tmp_path: Path
    ) -> None:
        name = sorted(cohort)[-1]
        before = digest(bundles[0])
        candidate = bundles[0] / "models" / "model_candidate.pt"
        candidate.unlink(missing_ok=True)
        server.start_training(A, max_epochs=10000, minutes=1)
        wait_for(candidate.is_file)
        wait_for(lambda: any("Epoch 1 of" in line or "step" in line for line in server.training()["details"]))
        server.stop_training()
        assert server.training()["status"] == "STOPPED"
        assert digest(bundles[0]) == before
        served = server.infer(A, name, tmp_path / "served.nrrd")
        stopped = server.infer(A, name, tmp_path / "stopped.nrrd", model_filename=candidate.name)
        assert served.read_bytes() != stopped.read_bytes()

    def test_scores_are_entropies(self, server: LabelServer) -> None:
        status, log = server.score(A, max_samples=2, max_workers=1)
        assert status == "DONE", log[-3000:]
        studies = server.datastore()["objects"].values()
        scores = [s["image"]["info"]["epistemic_entropy"] for s in studies if "epistemic_entropy" in s["image"]["info"]]
        assert len(scores) == 2
        assert all(0 < score <= np.log(4) + 1e-3 for score in scores)

    def test_a_worse_network_is_not_served(
        self, server: LabelServer, bundles: tuple[Path, Path], cohort: dict, tmp_path: Path
    ) -> None:
        """Labels drawn by the served network: it is perfect on them, and a new network is worse."""
        for name in sorted(cohort)[5:]:  # it learned from none of them
            drawn = sitk.ReadImage(str(server.infer(A, name, tmp_path / f"{name}.nrrd")))
            sitk.WriteImage(drawn, str(tmp_path / f"{name}.nii.gz"))
            server.save_label(name, tmp_path / f"{name}.nii.gz", segments=SEGMENTS)
        before = digest(bundles[0])
        status, log = server.train(A, max_epochs=1, val_split=0.5, model_filename="anew.pt")
        assert status == "DONE", log[-3000:]
        assert "The new network is worse: the served one is kept, the new one is model_candidate.pt" in log
        assert digest(bundles[0]) == before

    def test_with_every_study_labelled_training_goes_on(
        self, server: LabelServer, bundles: tuple[Path, Path], cohort: dict
    ) -> None:
        for name in sorted(cohort)[5:]:
            server.save_label(name, cohort[name][1])
        status, log = server.train(A, max_epochs=1)
        assert status == "DONE", log[-3000:]
        assert "learning from 8 labelled and 0 unlabelled studies, validating on 2" in log
        assert "Every study has a label" in log


def test_a_training_ends_with_its_server(cohort: dict, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in sorted(cohort)[:3]:
        shutil.copy(cohort[name][0], studies / f"{name}.nii.gz")
    bundle = make_bundle(app_folder(tmp_path), A)
    before = digest(bundle)
    with LabelServer(tmp_path, studies, [A]) as server:
        server.save_label(sorted(cohort)[0], cohort[sorted(cohort)[0]][1], segments=SEGMENTS)
        server.start_training(A, max_epochs=10000, minutes=1, val_split=0)
        wait_for((bundle / "models" / "model_candidate.pt").is_file)
        (training,) = [p for p in psutil.Process(server.process.pid).children(recursive=True) if "train" in p.cmdline()]
        server.crash()
        wait_for(lambda: not training.is_running() or training.status() == psutil.STATUS_ZOMBIE)
    assert digest(bundle) == before


@pytest.mark.parametrize("suffix", [".mhd", ".nrrd", ".png"])
def test_other_formats(suffix: str, cohort: dict, tmp_path: Path) -> None:
    """Six studies of another format, labels in NIfTI as 3D Slicer sends them."""
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in sorted(cohort)[:6]:
        images = [sitk.ReadImage(str(path)) for path in cohort[name]]
        if suffix == ".png":
            # One slice without geometry. The image's rows and columns are the label's.
            images = [image[:, :, image.GetDepth() // 2] for image in images]
            images[0] = sitk.Cast(sitk.RescaleIntensity(images[0], 0, 255), sitk.sitkUInt8)
            images = [sitk.GetImageFromArray(sitk.GetArrayFromImage(image)) for image in images]
            images[1] = sitk.JoinSeries(images[1])
        sitk.WriteImage(images[0], str(studies / f"{name}{suffix}"))
        sitk.WriteImage(images[1], str(tmp_path / f"{name}.nii.gz"))
    # A bundle for a data set of masks: viewers still write classes.
    stored = {"label_values": [0, 85, 170, 255]} if suffix == ".png" else {}
    bundle = make_bundle(app_folder(tmp_path), A, **stored)
    before = digest(bundle)
    # the server's own list has the others
    environment = {"MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps([f"*{suffix}", "*.nii.gz"])} if suffix == ".mhd" else {}
    names = sorted(cohort)[:6]
    with LabelServer(tmp_path, studies, [A], environment=environment) as server:
        assert server.info()["datastore"]["total"] == 6
        for name in names[:2]:
            server.save_label(name, tmp_path / f"{name}.nii.gz")
        status, log = server.train(A, max_epochs=1)
        assert status == "DONE", log[-3000:]
        assert "learning from 2 labelled and 4 unlabelled studies, validating on 0" in log
        assert digest(bundle) != before
        expected = reference(bundle, studies / f"{names[-1]}{suffix}", tmp_path / "reference")
        assert same(server.infer(A, names[-1], tmp_path / "answer.nrrd"), expected)
