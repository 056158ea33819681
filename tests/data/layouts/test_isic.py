"""ISIC's folders and split, their faults, and the phantom cohort in its layout."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image, ImageFilter

from scripts.data import dataset_records
from scripts.data.layouts.isic import isic_cases
from scripts.data.records import LAYOUTS, seeded_split
from scripts.phantoms import make_phantom_cohort
from scripts.utils.errors import FaultsError

ROOT = Path(__file__).resolve().parents[3]
PHOTO = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
MASK = np.zeros((24, 32), np.uint8)
MASK[4:15, 6:20] = 255


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path) -> dict[str, tuple[str, ...]]:
    """Files of each case, relative to the root."""
    return {
        case: tuple(str(Path(record[key]).relative_to(root)) for key in ("image", "label") if key in record)
        for case, (record,) in isic_cases(root).items()
    }


def test_official_folders(tmp_path: Path) -> None:
    images, masks = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"
    touch(tmp_path, f"{images}/b.jpg", f"{images}/a.JPG", f"{images}/c.png", f"{images}/a_superpixels.png")
    touch(tmp_path, f"{images}/Thumbs.db", f"{images}/ATTRIBUTION.txt", f"{images}/metadata.csv", "LICENSE.txt")
    touch(tmp_path, f"{masks}/a_segmentation.png", f"{masks}/c_segmentation.png", f"{masks}/stranger_segmentation.png")
    touch(tmp_path, "ISIC2018_Task1-2_Validation_Input/v.jpg")  # the protocol's images are the training folder's
    assert list(found(tmp_path).items()) == [
        ("a", (f"{images}/a.JPG", f"{masks}/a_segmentation.png")),
        ("b", (f"{images}/b.jpg",)),
        ("c", (f"{images}/c.png", f"{masks}/c_segmentation.png")),
    ]


def test_plain_folders_and_a_part_alone(tmp_path: Path) -> None:
    touch(tmp_path / "x", "images/a.jpeg", "masks/a_segmentation.png")
    assert found(tmp_path / "x") == {"a": ("images/a.jpeg", "masks/a_segmentation.png")}
    touch(tmp_path / "y", "P_Test_Input/t.jpg", "P_Test_GroundTruth/t_segmentation.png")
    assert found(tmp_path / "y") == {"t": ("P_Test_Input/t.jpg", "P_Test_GroundTruth/t_segmentation.png")}


def test_files_that_macos_leaves_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/._a.jpg", "masks/a_segmentation.png", "masks/._a_segmentation.png")
    touch(tmp_path, "images/._b.jpg", ".DS_Store")
    assert list(isic_cases(tmp_path)) == ["a"]


def test_equal_names_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/{name}" for name in ("a.jpg", "a.png", "b.jpg", "b.png")))
    with pytest.raises(FaultsError, match=r"a\.jpg' and '.*a\.png' have the same name") as info:
        isic_cases(tmp_path)
    assert len(info.value.faults) == 2


def test_two_masks_of_an_image_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "x_Input/a.jpg", "x_Input/b.jpg", "x_GroundTruth/a_segmentation.PNG", "masks/b_segmentation.png")
    assert found(tmp_path)["a"] == ("x_Input/a.jpg", "x_GroundTruth/a_segmentation.PNG")
    touch(tmp_path, "masks/a_segmentation.png", "x_GroundTruth/b_segmentation.png", "masks/stranger_segmentation.png")
    with pytest.raises(FaultsError, match=r"masks/a_segmentation\.png' are both the mask of '.*a\.jpg'") as info:
        isic_cases(tmp_path)
    assert len(info.value.faults) == 2


def test_published_split() -> None:
    """The rule of docs/protocol.md: the counts, and the split depends on the names only."""
    names = [f"ISIC_{i:07d}" for i in range(2594)]
    parts = seeded_split(names, LAYOUTS["isic"].validation)
    assert [len(parts[part]) for part in ("train", "val")] == [1838, 756]
    assert sorted(parts["train"] + parts["val"]) == names
    assert parts == seeded_split(names[::-1], LAYOUTS["isic"].validation)
    assert parts["train"][:3] == ["ISIC_0000060", "ISIC_0000379", "ISIC_0000299"]  # computed with sha256sum and sort


def test_real_images(real_data: Callable[[str], Path]) -> None:
    """The rule of docs/protocol.md, recomputed for the available images of the training part."""
    root = real_data("isic")
    official = [*root.glob("*_Training_Input")] or [*root.glob("*_Input")]
    images = sorted(p.stem for p in chain(*(folder.iterdir() for folder in (*official, *root.glob("images")))))
    images = [name for name in images if re.fullmatch(r"ISIC_\d{7}", name)]
    assert images, "no image is called as ISIC calls them"
    masks = {path.name.removesuffix("_segmentation.png") for path in root.glob("*/*_segmentation.png")}
    ordered = sorted(masks.intersection(images), key=lambda name: sha256(f"0:{name}".encode()).digest())
    first = len(ordered) - max(1, round(len(ordered) * 756 / 2594))
    train = dataset_records("isic", root, "train", labeled=0.03)
    val = dataset_records("isic", root, "val")
    assert [record["case"] for record in val] == ordered[first:]
    assert [record["case"] for record in train] == ordered[:first] + [name for name in images if name not in masks]
    labelled = [record["case"] for record in train if "label" in record]
    assert labelled == ordered[: max(1, round(0.03 * len(train)))]
    assert all("label" in record for record in val)


def test_real_images_in_either_layout(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """The official flat folders, and plain ones, of the same files."""
    found = [record for of_case in isic_cases(real_data("isic")).values() for record in of_case]
    assert all("label" in record for record in found)
    for names in (("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"), ("images", "masks")):
        root = tmp_path / names[0]
        root.mkdir()
        for name, key in zip(names, ("image", "label"), strict=True):
            (root / name).symlink_to(Path(found[0][key]).parent)
        again = [record for of_case in isic_cases(root).values() for record in of_case]
        for record, other in zip(found, again, strict=True):
            assert record["case"] == other["case"]
            assert all(Path(record[key]).samefile(other[key]) for key in ("image", "label"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcdef":
        touch(tmp_path, f"images/{name}.png", f"masks/{name}_segmentation.png")
        Image.fromarray(PHOTO).save(tmp_path / f"images/{name}.png")
        Image.fromarray(MASK).save(tmp_path / f"masks/{name}_segmentation.png")
    return tmp_path


def dataset(root: Path, part: str) -> Any:
    """The data set of a training, built by the configuration."""
    parser = ConfigParser()
    parser.read_config([ROOT / "configs/train.json", ROOT / "configs/datasets/isic.json"])
    for key, value in {"bundle_root": ROOT, "dataset_dir": root, "cache_dir": root / "cache"}.items():
        parser[key] = str(value)
    parser["image_size"], parser["labeled"], parser["splits"] = 16, None, None
    parser.parse()
    try:
        return parser.get_parsed_content(f"{part}#dataset")
    except RuntimeError as error:  # MONAI's error names the failed component
        raise error.__cause__ or error from None


def palette() -> Image.Image:
    image = Image.fromarray(MASK // 255).convert("P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    return image


def change_mask(mask: Image.Image) -> Callable[[Path, str], None]:
    return lambda root, name: mask.save(root / f"masks/{name}_segmentation.png")


def change_image(image: Image.Image) -> Callable[[Path, str], None]:
    return lambda root, name: image.save(root / f"images/{name}.png")


FAULTS: dict[str, tuple[Callable[[Path, str], Any], str]] = {
    "mask of another size": (change_mask(Image.fromarray(MASK[:20])), r"label shape \(32, 20, 1\) is not the image"),
    "transposed mask": (change_mask(Image.fromarray(MASK.T.copy())), r"label shape \(24, 32, 1\) is not the image"),
    "RGBA mask": (change_mask(Image.fromarray(MASK).convert("RGBA")), "found 8 bits and 4 channels"),
    "RGB mask": (change_mask(Image.fromarray(MASK).convert("RGB")), "a label has one channel, found 3"),
    "palette mask": (change_mask(palette()), "a label has one channel, found 3"),
    "16-bit mask": (change_mask(Image.fromarray(MASK.astype(np.uint16) * 257)), "found 16 bits"),
    "grey mask": (change_mask(Image.fromarray(MASK // 2)), "label values must be 0, 255, found 127"),
    "class numbers beside 255": (
        change_mask(Image.fromarray(np.where(PHOTO[..., 0] < 99, MASK, MASK // 255))),
        "found 1",
    ),
    "RGBA image": (change_image(Image.fromarray(PHOTO).convert("RGBA")), "found 8 bits and 4 channels"),
    "16-bit image": (change_image(Image.fromarray(MASK.astype(np.uint16))), "found 16 bits"),
    "grey image": (change_image(Image.fromarray(MASK)), r"found 1 channels, expected 3|\[1, 16, 16\]"),
    "no image": (lambda root, name: (root / f"images/{name}.png").write_text("no image"), "is not an image"),
}


@pytest.mark.parametrize("part", ["train", "validate"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_before_training(folder: Path, fault: str, part: str) -> None:
    name = dataset_records("isic", folder, {"train": "train", "validate": "val"}[part])[-1]["case"]
    change, message = FAULTS[fault]
    change(folder, name)
    with pytest.raises(ValueError, match=message) as caught:
        dataset(folder, part)
    assert f"{name}.png" in str(caught.value) or f"{name}_segmentation.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sound_folder(folder: Path) -> None:
    Image.fromarray(MASK).convert("1").save(folder / "masks/a_segmentation.png")  # one bit per pixel is 0 and 255 too
    change_mask(Image.fromarray(0 * MASK))(folder, "b")  # nothing to see is no fault
    change_mask(Image.fromarray(MASK // 255))(folder, "c")  # the classes' own numbers are accepted
    assert len(dataset(folder, "train")) == 4
    assert len(dataset(folder, "validate")) == 2


def test_missing_masks(folder: Path) -> None:
    (folder / "masks/a_segmentation.png").unlink()
    parts = {part: dataset_records("isic", folder, part) for part in ("train", "val")}
    assert [r["case"] for records in parts.values() for r in records if "label" not in r] == ["a"]
    assert "a" in {record["case"] for record in parts["train"]}, "an image without a mask cannot validate"
    shutil.rmtree(folder / "masks")
    with pytest.raises(FileNotFoundError, match=r"no training image of .* has a label.*<image>_segmentation"):
        dataset_records("isic", folder, "train", labeled=2)
    shutil.rmtree(folder / "images")
    with pytest.raises(FileNotFoundError, match=r"no case in .*\*_GroundTruth"):
        dataset_records("isic", folder, "train")


def test_phantom_lesions(tmp_path: Path) -> None:
    root = Path(make_phantom_cohort(tmp_path / "cohort", patients=(10, 4, 2), kind="isic", size=(60, 80)))
    splits = root / "splits.json"
    records = [record for part in ("train", "val", "test") for record in dataset_records("isic", root, part, splits)]
    assert [record["case"] for record in records] == [f"ISIC_{i:07d}" for i in range(16)]
    at_edge = []
    for record in records:
        image, mask = (Image.open(record[key]) for key in ("image", "label"))
        assert (image.format, image.mode, mask.format, mask.mode) == ("JPEG", "RGB", "PNG", "L")
        assert image.size == mask.size
        pixels, lesion = np.asarray(image, dtype=float), np.asarray(mask)
        assert set(np.unique(lesion)) == {0, 255}
        assert 0.01 < (lesion > 0).mean() < 0.5
        around = np.asarray(mask.filter(ImageFilter.MaxFilter(9))) > lesion
        assert pixels[lesion > 0, 2].mean() < pixels[around, 2].mean(), "pigment takes blue light"
        at_edge.append(any(side.any() for side in (lesion[0], lesion[-1], lesion[:, 0], lesion[:, -1])))
    assert 0 < sum(at_edge) < len(at_edge)
    again = Path(make_phantom_cohort(tmp_path / "again", patients=(1, 1, 0), kind="isic", size=(60, 80)))
    for record in dataset_records("isic", again, "val", again / "splits.json"):
        assert Path(record["image"]).read_bytes() == Path(records[1]["image"]).read_bytes()
    with pytest.raises(ValueError, match="slices"):
        make_phantom_cohort(tmp_path / "other", kind="isic", slices=(3, 4))


def test_published_split_on_real_data(real_data: Callable[[str], Path]) -> None:
    """The overlay's split: its lists exist, are disjoint, and the paper's 3 and 10 % are the first of the list."""
    root, splits = real_data("isic"), ROOT / "scripts/data/splits/isic.json"
    if len(list((root / "images").glob("*"))) < 2594:
        pytest.skip(f"{root} holds a subset of ISIC 2018")
    val = {record["case"] for record in dataset_records("isic", root, "val", splits)}
    assert len(val) == 756
    for share, count, last in ((0.03, 55, "ISIC_0000085"), (181, 181, "ISIC_0000287")):
        train = dataset_records("isic", root, "train", splits, share)
        labeled = [record["case"] for record in train if "label" in record]
        assert (len(train), len(labeled), labeled[-1]) == (1838, count, last)
        assert val.isdisjoint(record["case"] for record in train)
