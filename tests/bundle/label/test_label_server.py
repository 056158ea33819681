"""A real MONAI Label server with the stock app, driven over HTTP. The tests of a class share one server, in order."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from bundle.label.server import LabelServer, app_folder, place_bundle
from scripts.networks import UNet
from scripts.phantoms import make_phantom_cohort

ROOT = Path(__file__).resolve().parents[3]
A, B = "semsim_a_segmentation", "semsim_b_segmentation"
SEGMENTS = ["rv", "myo", "lv"]
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
    """What `inference.json` of that bundle makes of an image, in a process of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--dataset_dir", str(image), "--output_dir", str(folder)]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return nib.load(next(folder.rglob("*_seg.nii.gz")))


def same(answer: Path, expected: nib.Nifti1Image) -> bool:
    found = nib.load(answer)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    return np.array_equal(np.asarray(found.dataobj).squeeze(), np.asarray(expected.dataobj).squeeze())


def digest(bundle: Path) -> str:
    return hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()


class TestNifti:
    @pytest.fixture(scope="class")
    @staticmethod
    def folder(tmp_path_factory: pytest.TempPathFactory, cohort: dict) -> Path:
        folder = tmp_path_factory.mktemp("nifti")
        studies = folder / "studies"
        (studies / "labels" / "original").mkdir(parents=True)
        for name, (image, _) in cohort.items():
            shutil.copy(image, studies / f"{name}.nii.gz")
            # What a network predicted: its class 9 would stop every training that took it for truth.
            wrong = nib.load(image)
            wrong = nib.Nifti1Image(np.full(wrong.shape, 9, np.uint8), wrong.affine)
            nib.save(wrong, studies / "labels" / "original" / f"{name}.nii.gz")
        app = app_folder(folder)
        make_bundle(app, A)
        fixmatch = json.loads((ROOT / "configs" / "methods" / "fixmatch.json").read_text())["method"]
        other = make_bundle(app, B, method=fixmatch)
        # Other code under the same package name: what B predicts tells whose code ran.
        unet = other / "scripts" / "networks" / "unet.py"
        code = unet.read_text()
        assert code.count("return self.head(") == 1
        unet.write_text(code.replace("return self.head(", "return -self.head("))
        return folder

    @pytest.fixture(scope="class")
    @staticmethod
    def server(folder: Path) -> Iterator[LabelServer]:
        """Where the environment names a proxy, requests to this machine still go past it."""
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
        assert info["models"][A]["labels"] == {name: k for k, name in enumerate(SEGMENTS, 1)}
        assert info["datastore"]["total"] == 10

    def test_each_copy_predicts_as_its_own_inference_config(
        self, server: LabelServer, bundles: tuple[Path, Path], cohort: dict, tmp_path: Path
    ) -> None:
        name = sorted(cohort)[0]
        expected = [reference(bundle, cohort[name][0], tmp_path / bundle.name) for bundle in bundles]
        assert len(np.unique(np.asarray(expected[0].dataobj))) > 1
        answers = [server.infer(model, name, tmp_path / f"{k}.nii.gz") for k, model in enumerate((A, B, A, B))]
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
        for name in names[:2]:
            server.save_label(name, cohort[name][1], segments=SEGMENTS)
        status, log = server.train(A, max_epochs=1)
        assert status == "DONE", log[-3000:]
        assert "learning from 2 labelled and 8 unlabelled studies, validating on 0" in log
        assert digest(bundles[0]) != before[0]
        assert digest(bundles[1]) == before[1]
        runs = list((bundles[0] / "output").iterdir())
        assert len(runs) == log.count("is now the network of") == 1, "the options that 3D Slicer sends train once"
        record = json.loads((bundles[0] / "models" / "model.json").read_text())
        assert (record["split"], record["labeled_cases"], record["unlabeled_cases"]) == ("MONAI Label datastore", 2, 8)
        assert json.loads((runs[0] / "model.json").read_text()) == record
        # The served weights were synthetic ones: they bind nobody, and nobody stated the terms of the studies.
        assert record["continues_sha256"] == before[0]
        assert record["license"][0].startswith("not stated")
        assert "synthetic" not in " ".join(record["license"]) + (bundles[0] / "models" / "LICENSE.txt").read_text()
        expected = reference(bundles[0], cohort[names[-1]][0], tmp_path / "reference")
        assert same(server.infer(A, names[-1], tmp_path / "answer.nii.gz"), expected)

    def test_a_file_that_is_not_there_begins_anew(self, server: LabelServer, bundles: tuple[Path, Path]) -> None:
        before = digest(bundles[0])
        status, log = server.train(A, max_epochs=1, model_filename="anew.pt")
        assert status == "DONE", log[-3000:]
        assert digest(bundles[0]) != before
        record = json.loads((bundles[0] / "models" / "model.json").read_text())
        assert "continues_sha256" not in record
        assert sorted(path.name for path in (bundles[0] / "models").glob("*.pt")) == ["model.pt"]

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
        assert digest(bundles[1]) != before[1]
        for model, bundle in zip((A, B), bundles, strict=True):
            expected = reference(bundle, cohort[names[-1]][0], tmp_path / model)
            assert same(server.infer(model, names[-1], tmp_path / f"{model}.nii.gz"), expected)

    def test_a_broken_study_is_named_and_the_served_weights_stay(
        self, server: LabelServer, bundles: tuple[Path, Path], tmp_path: Path
    ) -> None:
        broken = tmp_path / "broken.nii.gz"
        broken.write_bytes(b"no image")
        before = digest(bundles[0])
        server.add_image("broken", broken)
        status, log = server.train(A, max_epochs=1)
        server.remove_image("broken")
        assert status == "ERROR"
        assert any(line.startswith("error: ") and "broken.nii.gz" in line for line in log.splitlines()), log[-3000:]
        assert digest(bundles[0]) == before

    def test_a_label_that_lacks_a_segment_is_named_and_the_served_weights_stay(
        self, server: LabelServer, bundles: tuple[Path, Path], cohort: dict
    ) -> None:
        name = sorted(cohort)[0]
        before = digest(bundles[0])
        server.save_label(name, cohort[name][1], segments=SEGMENTS[1:])
        status, log = server.train(A, max_epochs=1)
        server.save_label(name, cohort[name][1], segments=SEGMENTS)
        assert status == "ERROR"
        line = f"error: The final label of '{name}' has the segments myo, lv, expected RV, Myo, LV in this order"
        assert any(entry.startswith(line) for entry in log.splitlines()), log[-3000:]
        assert digest(bundles[0]) == before

    def test_scores_are_entropies(self, server: LabelServer) -> None:
        status, log = server.score(A, max_samples=2, max_workers=1)
        assert status == "DONE", log[-3000:]
        studies = server.datastore()["objects"].values()
        scores = [s["image"]["info"]["epistemic_entropy"] for s in studies if "epistemic_entropy" in s["image"]["info"]]
        assert len(scores) == 2
        assert all(0 < score <= np.log(4) + 1e-3 for score in scores)

    def test_with_every_study_labelled_training_goes_on(
        self, server: LabelServer, bundles: tuple[Path, Path], cohort: dict
    ) -> None:
        before = digest(bundles[0])
        for name in sorted(cohort)[5:]:
            server.save_label(name, cohort[name][1])
        status, log = server.train(A, max_epochs=1)
        assert status == "DONE", log[-3000:]
        assert "learning from 8 labelled and 0 unlabelled studies, validating on 2" in log
        assert "No study is without a label" in log
        assert digest(bundles[0]) != before
        assert len(list((bundles[0] / "output").iterdir())) == 3  # three trainings of this copy came to their end


@pytest.mark.parametrize("suffix", [".mhd", ".png"])
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
    # A bundle whose own data set stores masks: viewers write classes all the same.
    stored = {"label_values": [0, 85, 170, 255]} if suffix == ".png" else {}
    bundle = make_bundle(app_folder(tmp_path), A, **stored)
    before = digest(bundle)
    environment = {"MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps([f"*{suffix}", "*.nii.gz"])}
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
        assert same(server.infer(A, names[-1], tmp_path / "answer.nii.gz"), expected)
