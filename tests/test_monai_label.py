from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

from scripts.data import LabelValuesd
from scripts.monai_label import PublishWeights, run_folder, unlabeled_studies
from scripts.utils.errors import FaultsError
from scripts.utils.licences import SYNTHETIC, licenses_line
from scripts.utils.provenance import read_record, write_record


def make_datastore(root: Path, final: list[str], others: list[str], ext: str = ".nii.gz") -> list[dict[str, str]]:
    """A datastore as the server leaves it; the records of its final labels."""
    objects = {}
    for name in [*final, *others]:
        tags = ["original", "final"] if name in final else ["original"]
        for tag in tags:
            (root / "labels" / tag).mkdir(parents=True, exist_ok=True)
            (root / "labels" / tag / f"{name}.nii.gz").touch()
        (root / f"{name}{ext}").touch()
        labels = {tag: {"ext": ".nii.gz", "info": {}} for tag in tags}
        objects[name] = {"image": {"ext": ext, "info": {}}, "labels": labels}
    index = {"name": "", "description": "", "images_dir": ".", "labels_dir": "labels", "objects": objects}
    (root / "datastore_v2.json").write_text(json.dumps(index))
    return [{"image": str(root / f"{n}{ext}"), "label": str(root / "labels" / "final" / f"{n}.nii.gz")} for n in final]


@pytest.mark.parametrize("ext", [".nii.gz", ".nii", ".mhd", ".mha", ".png", ".jpg"])
def test_studies_without_a_final_label_are_the_unlabelled_ones(tmp_path: Path, ext: str) -> None:
    records = make_datastore(tmp_path, ["a", "b", "c"], ["z", "d"], ext)
    assert unlabeled_studies(records[:2], records[2:]) == [{"image": str(tmp_path / f"{n}{ext}")} for n in "dz"]


def test_validation_and_training_images_are_left_out_whatever_the_index_says(tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a", "b"], ["d"])
    index = json.loads((tmp_path / "datastore_v2.json").read_text())
    for name in "ab":
        del index["objects"][name]["labels"]["final"]
    (tmp_path / "datastore_v2.json").write_text(json.dumps(index))
    assert unlabeled_studies(records[:1], records[1:]) == [{"image": str(tmp_path / "d.nii.gz")}]


def test_what_is_no_readable_study_is_left_out(tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a"], ["d", ".hidden", "gone"])
    (tmp_path / "gone.nii.gz").unlink()
    index = json.loads((tmp_path / "datastore_v2.json").read_text())
    index["objects"]["slide"] = {"image": {"ext": ".svs"}, "labels": {}}
    (tmp_path / "datastore_v2.json").write_text(json.dumps(index))
    (tmp_path / "slide.svs").touch()
    (tmp_path / "not-listed.nii.gz").touch()
    assert unlabeled_studies(records) == [{"image": str(tmp_path / "d.nii.gz")}]


def test_linked_images_are_recognised(tmp_path: Path) -> None:
    store, archive = tmp_path / "studies", tmp_path / "archive"
    archive.mkdir()
    records = make_datastore(store, ["a"], ["d"])
    for name in ("a", "d"):
        (store / f"{name}.nii.gz").rename(archive / f"{name}.nii.gz")
        (store / f"{name}.nii.gz").symlink_to(archive / f"{name}.nii.gz")
    records[0]["image"] = os.path.realpath(records[0]["image"])  # as the server does
    assert unlabeled_studies(records) == [{"image": str(archive / "d.nii.gz")}]


@pytest.mark.parametrize("linked", ["a", "b", "ab"])
def test_linked_labels_are_recognised(linked: str, tmp_path: Path) -> None:
    store, masks = tmp_path / "studies", tmp_path / "masks"
    masks.mkdir()
    records = make_datastore(store, ["a", "b"], ["d"])
    for record in records:
        label = Path(record["label"])
        if label.name[0] in linked:
            label.rename(masks / label.name)
            label.symlink_to(masks / label.name)
        record["label"] = os.path.realpath(label)  # as the server does
    assert unlabeled_studies(records) == [{"image": str(store / "d.nii.gz")}]
    assert run_folder(tmp_path, records) != str(tmp_path)


def name_segments(root: Path, segments: dict[str, list[str]]) -> None:
    """What 3D Slicer tells the server of final labels: voxels are numbered by the segments' places in this list."""
    index = json.loads((root / "datastore_v2.json").read_text())
    for study, names in segments.items():
        info = {"label_info": [{"name": name, "idx": number} for number, name in enumerate(names, 2)]}
        index["objects"][study]["labels"]["final"]["info"] = info
    (root / "datastore_v2.json").write_text(json.dumps(index))


CLASSES = {"2": "Myo", "1": "RV", "3": "LV"}


def test_segments_that_are_the_classes_in_order_are_taken(tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a", "b", "c"], ["d"])
    name_segments(tmp_path, {"a": ["rv", "myo", "lv"], "b": ["RV", "Myo", "LV"], "c": []})
    index = json.loads((tmp_path / "datastore_v2.json").read_text())
    index["objects"]["c"]["labels"]["final"]["info"] = {"label_info": [{"idx": 1}]}  # nothing is known of names
    (tmp_path / "datastore_v2.json").write_text(json.dumps(index))
    assert unlabeled_studies(records, class_names=CLASSES) == [{"image": str(tmp_path / "d.nii.gz")}]
    assert unlabeled_studies(records, class_names={}) == [{"image": str(tmp_path / "d.nii.gz")}]


@pytest.mark.parametrize("names", [["myo", "lv"], ["rv", "lv", "myo"], ["rv", "myo", "lv", "aorta"], ["Segment_1"]])
def test_labels_whose_segments_are_not_the_classes_are_refused_by_name(names: list[str], tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a", "b", "c"], ["d"])
    name_segments(tmp_path, {"a": names, "b": ["rv", "myo", "lv"], "c": names})
    with pytest.raises(FaultsError) as error:
        unlabeled_studies(records, class_names=CLASSES)
    found = f"has the segments {', '.join(names)}, expected RV, Myo, LV in this order"
    first, second = error.value.faults
    assert first.startswith(f"The final label of 'a' {found}")
    assert second.startswith(f"The final label of 'c' {found}")


def test_an_index_that_is_being_written_is_read_again(tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    index = tmp_path / "datastore_v2.json"
    whole = index.read_text()
    index.write_text("")
    writer = threading.Timer(0.2, index.write_text, [whole])
    writer.start()
    assert unlabeled_studies(records) == [{"image": str(tmp_path / "d.nii.gz")}]
    writer.join()


def test_with_every_study_labelled_they_serve_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = make_datastore(tmp_path, ["a", "b", "c"], [])
    with caplog.at_level(logging.INFO):
        assert unlabeled_studies(records[:2], records[2:]) == [{"image": r["image"]} for r in records[:2]]
    assert "2 labelled and 0 unlabelled studies, validating on 1" in caplog.text
    assert "also serve as unlabelled" in caplog.text


@pytest.mark.parametrize("records", [[], [{"image": "x.nii.gz"}], [{"image": "x.nii.gz", "label": "x_gt.nii.gz"}]])
def test_other_data_sets_are_left_alone(records: list, tmp_path: Path) -> None:
    assert unlabeled_studies(records) == []
    assert run_folder(tmp_path, records) == str(tmp_path)
    trainer = Engine(lambda engine, batch: None)
    PublishWeights(str(tmp_path), str(tmp_path / "served.pt"), records, torch.nn.Linear(1, 1)).attach(trainer)
    trainer.run([0])
    assert not (tmp_path / "served.pt").exists()


def test_labels_elsewhere_make_no_datastore(tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    original = [{**records[0], "label": str(tmp_path / "labels" / "original" / "a.nii.gz")}]
    assert unlabeled_studies(original) == []
    (tmp_path / "datastore_v2.json").unlink()
    assert unlabeled_studies(records) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"images_dir": "."}', '{"images_dir": ".", "objects": {"d": {}}}'])
def test_an_index_that_cannot_be_read_is_named(content: str, tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    (tmp_path / "datastore_v2.json").write_text(content)
    with pytest.raises(ValueError, match=r"datastore_v2\.json: expected MONAI Label's list of studies"):
        unlabeled_studies(records)


def test_each_run_has_a_folder_of_its_own_inside_the_output(tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    folder = Path(run_folder(tmp_path / "output", records))
    assert folder.parent == tmp_path / "output"
    assert not folder.exists()


def save_weights(path: Path, **record: object) -> None:
    """Weights that differ from all others, with their record."""
    path.parent.mkdir(exist_ok=True)
    torch.save(torch.nn.Linear(1, 1).state_dict(), path)
    write_record(path, record)


def train(
    run: Path, served: Path, records: list, start: Path | None, broken: bool = False, image_size: int = 64
) -> None:
    """A training of two epochs that begins with a file, writes weights after the first and may break in the second."""
    network = torch.nn.Linear(1, 1)
    old = served.read_bytes()

    def step(engine: Engine, batch: int) -> None:
        network.weight.data += 1
        assert served.read_bytes() == old
        if broken and engine.state.epoch == 2:
            raise ValueError("broken")

    trainer = Engine(step)
    if start:  # MONAI Label's own handler is the first
        trainer.add_event_handler(Events.STARTED, lambda: network.load_state_dict(torch.load(start)))
    known = {
        "data": "acdc",
        "split": "acdc.json",
        "split_sha256": "0" * 64,
        "labeled_cases": 1,
        "image_size": image_size,
    }
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: save_weights(run / "model.pt", **known))
    PublishWeights(str(run), str(served), records, network).attach(trainer)
    trainer.run([0], max_epochs=2)


def test_only_a_finished_training_is_published(tmp_path: Path) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    run, served = tmp_path / "run", tmp_path / "models" / "model.pt"
    save_weights(served, license="terms")
    old = served.read_bytes()
    with pytest.raises(ValueError, match="broken"):
        train(run, served, records, served, broken=True)
    assert served.read_bytes() == old
    stopped = read_record(run / "model.pt")
    assert stopped is not None
    assert stopped["data"] == "custom", "somebody may put these weights to use"
    assert stopped["license"][1:] == ["terms"]
    train(run, served, records, served)
    assert served.read_bytes() == (run / "model.pt").read_bytes() != old
    assert sorted(p.name for p in served.parent.iterdir()) == ["LICENSE.txt", "model.json", "model.pt"]


@pytest.mark.parametrize(("before", "warned"), [(96, True), (64, False), (None, False)])
def test_a_server_that_keeps_the_old_slice_size_is_to_be_restarted(
    before: int | None, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    served = tmp_path / "models" / "model.pt"
    save_weights(served, license="terms", **({"image_size": before} if before else {}))
    train(tmp_path / "run", served, records, None)
    assert ("The slice size changed from 96 to 64: restart the server" in caplog.text) is warned


@pytest.mark.parametrize(
    ("start", "inherited"),
    [
        ("model.pt", "terms"),
        ("earlier.pt", "other terms"),
        ("synthetic.pt", None),
        ("continued.pt", "terms of the first"),
        ("unknown.pt", None),
        (None, None),
    ],
)
def test_weights_carry_the_terms_of_those_that_they_began_with(
    start: str | None, inherited: str | None, tmp_path: Path
) -> None:
    records = make_datastore(tmp_path, ["a"], ["d"])
    run, models = tmp_path / "run", tmp_path / "models"
    save_weights(models / "model.pt", license="terms")
    save_weights(models / "earlier.pt", license="other terms")
    save_weights(models / "synthetic.pt", license=SYNTHETIC, synthetic=True)
    save_weights(models / "continued.pt", license=licenses_line([SYNTHETIC, "terms of the first"]), synthetic=True)
    save_weights(models / "unknown.pt")
    (models / "unknown.json").unlink()
    origin = start and read_record(models / start)
    train(run, models / "model.pt", records, start and models / start)
    for folder in (run, models):
        record = read_record(folder / "model.pt")
        assert record is not None
        assert (record["data"], record["split"], record["labeled_cases"]) == ("custom", "MONAI Label datastore", 1)
        assert record["split_sha256"] is None
        assert record["license"][0].startswith("not stated")
        assert record["license"][1:] == ([inherited] if inherited else [])
        assert record.get("continues_sha256") == (origin["sha256"] if origin else None)
        text = (folder / "LICENSE.txt").read_text()
        assert "trained on: studies of a MONAI Label datastore\nLicence of these data: not stated" in text
        assert "synthetic" not in text
        assert (f"Licence of the weights that it began with: {inherited}\n" in text) is (inherited is not None)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [([0, 255, 0], [0, 1, 0]), ([0, 1, 0], [0, 1, 0]), ([0, 0, 0], [0, 0, 0]), ([1, 255, 0], None), ([0, 2, 1], None)],
)
def test_viewers_write_classes_where_files_store_other_values(stored: list[int], expected: list[int] | None) -> None:
    transform = LabelValuesd("label", [0, 255])
    label = {"label": torch.tensor(stored, dtype=torch.float32)}
    if expected is None:
        with pytest.raises(ValueError, match="label values must be 0, 255, found"):
            transform(label)
    else:
        assert transform(label)["label"].tolist() == expected


def test_a_viewers_classes_are_refused_where_they_could_pass_for_stored_values() -> None:
    transform = LabelValuesd("label", [0, 2, 3])  # 2 is what the first class stores, and the second class's number
    assert transform({"label": torch.tensor([0.0, 3.0, 2.0])})["label"].tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match="label values must be 0, 2, 3, found 1"):
        transform({"label": torch.tensor([0.0, 1.0, 2.0])})
