from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Orientationd
from PIL import Image

from scripts.data.cache import cached_volumes
from scripts.data.readers import LoadImageVolumed, MetaImageReader, is_photograph

SHAPE = (7, 6, 5)
SPACING = (0.625, 1.3, 3.6)
ORIGIN = (-12.5, 33.25, 71.0)
VOXELS = np.random.default_rng(0).integers(-500, 1500, SHAPE).astype(np.int16)

TURNS = {
    "straight": np.eye(3),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "mirrored": np.diag([-1.0, 1.0, 1.0]),
    "permuted": np.eye(3)[:, [2, 0, 1]],
    "oblique": np.linalg.qr(np.eye(3) + 0.3 * np.random.default_rng(1).normal(size=(3, 3)))[0],
}


def volume(turn: str) -> sitk.Image:
    image = sitk.GetImageFromArray(VOXELS.transpose(2, 1, 0))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(TURNS[turn].ravel().tolist())
    return image


def load(path: Path) -> MetaTensor:
    return LoadImageVolumed("image")({"image": str(path)})["image"]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize(("suffix", "compressed"), [(".mhd", False), (".mhd", True), (".mha", False), (".mha", True)])
def test_metaimage_is_what_nibabel_reads_of_the_same_volume(
    tmp_path: Path, turn: str, suffix: str, compressed: bool
) -> None:
    sitk.WriteImage(volume(turn), str(tmp_path / f"x{suffix}"), compressed)
    sitk.WriteImage(volume(turn), str(tmp_path / "x.nii.gz"))
    nifti = nib.load(tmp_path / "x.nii.gz")
    found = load(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(found, np.asarray(nifti.dataobj))
    np.testing.assert_array_equal(found, VOXELS)
    np.testing.assert_allclose(found.affine, nifti.affine, atol=1e-4)  # NIfTI stores 32-bit numbers
    same = load(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(found.affine, same.affine, atol=1e-4)
    for key in ("original_affine", "spatial_shape", "original_channel_dim", "space"):
        if key == "space":
            assert found.meta[key] == same.meta[key]
        else:
            np.testing.assert_allclose(found.meta[key], same.meta[key], atol=1e-4)


@pytest.mark.parametrize("turn", TURNS)
def test_affine_gives_simpleitks_physical_points(tmp_path: Path, turn: str) -> None:
    sitk.WriteImage(volume(turn), str(tmp_path / "x.mha"))
    found, image = load(tmp_path / "x.mha"), volume(turn)
    for index in itertools.product((0, 6), (0, 5), (0, 2, 4)):
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        point = nib.affines.apply_affine(np.asarray(found.affine), index)
        np.testing.assert_allclose(point, [-left, -posterior, superior], atol=1e-9)
        assert found[index] == image[index]


@pytest.mark.parametrize("turn", TURNS)
def test_both_formats_are_alike_after_reorientation(tmp_path: Path, turn: str) -> None:
    steps = Compose(
        [LoadImageVolumed("image"), EnsureChannelFirstd("image"), Orientationd("image", "LPS", labels=None)]
    )
    sitk.WriteImage(volume(turn), str(tmp_path / "x.mhd"))
    sitk.WriteImage(volume(turn), str(tmp_path / "x.nii"))
    meta, nifti = (steps({"image": str(tmp_path / name)})["image"] for name in ("x.mhd", "x.nii"))
    np.testing.assert_array_equal(meta, nifti)
    np.testing.assert_allclose(meta.affine, nifti.affine, atol=1e-4)
    assert nib.aff2axcodes(np.asarray(meta.affine)) == ("L", "P", "S")


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_channels_of_a_vector_image(tmp_path: Path, suffix: str) -> None:
    array = np.random.default_rng(2).normal(size=(5, 6, 7, 3)).astype(np.float32)  # z, y, x, channel
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / f"x{suffix}"))
    item = Compose([LoadImageVolumed("image"), EnsureChannelFirstd("image")])({"image": str(tmp_path / f"x{suffix}")})
    np.testing.assert_array_equal(item["image"], array.transpose(3, 2, 1, 0))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_are_volumes_of_one_slice_that_nothing_turns(tmp_path: Path, suffix: str, channels: int) -> None:
    # 24 columns, 16 rows, corners of different brightness; smooth, because JPEG stores smooth images accurately
    rows, columns = np.mgrid[0:16, 0:24]
    array = np.stack([4 * rows + 2 * columns + 40 * channel for channel in range(channels)], -1).astype(np.uint8)
    Image.fromarray(array.squeeze()).save(tmp_path / f"x{suffix}", quality=100, subsampling=0, dpi=(300, 300))
    steps = Compose(
        [LoadImageVolumed("image"), EnsureChannelFirstd("image"), Orientationd("image", "LPS", labels=None)]
    )
    found = steps({"image": str(tmp_path / f"x{suffix}")})["image"]
    assert found.shape == (channels, 24, 16, 1)  # x (columns), y (rows)
    np.testing.assert_allclose(found[..., 0], array.transpose(2, 1, 0), atol=0 if suffix == ".png" else 4)
    np.testing.assert_array_equal(found.affine, np.diag([-1, -1, 1, 1]))


@pytest.mark.parametrize("name", ["x.jpg.nii.gz", "x.png.nii", "x.mha.nii.gz"])
def test_the_last_suffix_alone_tells_the_format(tmp_path: Path, name: str) -> None:
    nib.save(nib.Nifti1Image(VOXELS, np.diag([*SPACING, 1])), tmp_path / name)
    assert not is_photograph(tmp_path / name)
    assert is_photograph(tmp_path / "x.nii.JPG")
    found = load(tmp_path / name)
    np.testing.assert_array_equal(found, VOXELS)
    np.testing.assert_allclose(np.diag(found.affine)[:3], SPACING)


def png(path: Path, array: np.ndarray) -> None:
    if array.shape[2:] == (2,):  # grey and alpha
        Image.fromarray(array, "LA").save(path)
        return
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=array.ndim == 3), str(path))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), "expected an 8-bit grey or RGB image, found 8 bits and 4 channels"),
        (np.zeros((4, 4, 2), np.uint8), "expected an 8-bit grey or RGB image, found 8 bits and 2 channels"),
        (np.zeros((4, 4), np.uint16), "found 16 bits and 1 channels"),
        (np.zeros((4, 4, 3), np.uint16), "found 16 bits and 3 channels"),
    ],
)
def test_other_photographs_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    png(tmp_path / "x.png", array)
    with pytest.raises(ValueError, match=rf"x\.png: .*{message}"):
        load(tmp_path / "x.png")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def faulty(folder: Path, fault: str) -> Path:
    """A file that cannot be read."""
    name = {"missing.mhd": "x.mhd", "cut.mhd": "x.mhd", "cut.zraw": "x.mhd", "short.mhd": "x.mhd"}.get(fault, fault)
    path = folder / name
    if path.suffix in (".mhd", ".mha"):
        sitk.WriteImage(volume("oblique"), str(path), fault in ("cut.zraw", "packed.mha"))
    else:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(path)
    voxels = path.with_suffix(".zraw" if fault == "cut.zraw" else ".raw")
    if fault == "missing.mhd":
        voxels.unlink()
    elif fault == "short.mhd":
        path.write_text(path.read_text().replace("DimSize = 7 6 5", "DimSize = 7 6 50"))
    elif path.suffix == ".mhd":
        halve(voxels)
    elif fault.startswith("text"):
        path.write_text("notes")
    else:
        halve(path)
    return path


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing.mhd", r"x\.mhd: the file of its voxels, 'x\.raw', is missing\."),
        ("cut.mhd", r"x\.mhd \(with 'x\.raw'\) is damaged or truncated, or its header is wrong: it contains 210 bytes"),
        ("cut.zraw", r"x\.mhd \(with 'x\.zraw'\) is damaged or truncated"),
        ("short.mhd", r"x\.mhd \(with 'x\.raw'\) is damaged .* 420 bytes of voxels, the header claims 4200\."),
        ("cut.mha", r"cut\.mha .*(is damaged or truncated|or is damaged)"),
        ("packed.mha", r"packed\.mha .*(is damaged or truncated|or is damaged)"),
        ("text.mha", r"text\.mha is not an image of this type"),
        ("cut.png", r"cut\.png is not an image of this type"),
        ("text.png", r"text\.png is not an image of this type"),
        ("cut.jpg", r"cut\.jpg is not an image of this type"),
        ("text.jpg", r"text\.jpg is not an image of this type"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path: Path, fault: str, message: str) -> None:
    path = faulty(tmp_path, fault)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        LoadImageVolumed("image")({"image": str(path)})
    cause: Any = error.value
    assert str(cause).startswith(str(path))
    assert "\n" not in str(cause)
    # training reads through the cache
    steps = Compose([LoadImageVolumed("image"), EnsureChannelFirstd("image")])
    with pytest.raises(ValueError, match=message) as error:
        cached_volumes([{"image": str(path)}], steps, tmp_path / "cache", num_classes=2)
    assert "\n" not in str(error.value)


def test_a_compressed_volume_of_which_a_bit_is_wrong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), path)
    sound = path.read_bytes()
    for place in range(20, len(sound), len(sound) // 50):  # 10 bytes of such a gzip file contain no data
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with pytest.raises(ValueError, match=r"x\.nii\.gz is not an image of this type, or is damaged\."):
            load(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_read_as_it_is_shown(tmp_path: Path, orientation: int, suffix: str) -> None:
    shown = np.add.outer(np.arange(8) * 20, np.arange(16) * 4).astype(np.uint8)  # brighter downwards, and to the right
    # a camera's orientations, by the standard's names of the sides of the first row and column
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.T,
        6: np.rot90(shown),
        7: shown[::-1, ::-1].T,
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"x{suffix}", quality=100, exif=exif)
    np.testing.assert_allclose(load(tmp_path / f"x{suffix}")[..., 0], shown.T, atol=4)


def test_the_content_of_a_photograph_counts_whatever_it_is_called(tmp_path: Path) -> None:
    grey = np.arange(30, dtype=np.uint8).reshape(5, 6) * 8
    Image.fromarray(grey).save(tmp_path / "x.jpg", format="PNG")
    np.testing.assert_array_equal(load(tmp_path / "x.jpg")[..., 0], grey.T)
    colours = np.stack([grey, 255 - grey, grey // 2], -1)
    palette = Image.fromarray(colours).quantize(256)
    for name in ("palette.png", "palette.jpg"):  # its indices mean nothing
        palette.save(tmp_path / name, format="PNG")
        np.testing.assert_array_equal(
            load(tmp_path / name)[:, :, 0].numpy(), np.asarray(palette.convert("RGB")).swapaxes(0, 1)
        )
    Image.fromarray(grey > 100).save(tmp_path / "1bit.png")
    np.testing.assert_array_equal(load(tmp_path / "1bit.png")[..., 0], 255.0 * (grey > 100).T)


def test_postscript_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript is called"))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.eps")
    for suffix in (".jpg", ".png"):
        (tmp_path / "x.eps").rename(tmp_path / f"x{suffix}")
        with pytest.raises(ValueError, match=rf"x\{suffix} is not an image of this type"):
            load(tmp_path / f"x{suffix}")
        (tmp_path / f"x{suffix}").rename(tmp_path / "x.eps")


def test_a_png_of_which_a_bit_is_wrong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)).save(path)
    sound = path.read_bytes()
    for place in range(0, len(sound) - 12, len(sound) // 50):  # the last chunk has no data
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with pytest.raises(ValueError, match=r"x\.png is not an image of this type, or is damaged"):
            load(path)


@pytest.mark.parametrize("name", ["x.MHA", "x.Mhd", "x.NII.GZ", "x.NII"])
def test_suffixes_in_capitals(tmp_path: Path, name: str) -> None:
    sitk.WriteImage(volume("oblique"), str(tmp_path / name.lower()))
    if name.lower() != name:
        (tmp_path / name.lower()).rename(tmp_path / name)
    np.testing.assert_array_equal(load(tmp_path / name), VOXELS)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    sitk.WriteImage(volume("straight"), str(tmp_path / "x.mha"))
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "x.nii")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    monkeypatch.setattr("builtins.open", refuse)  # root may read everything
    for suffix in (".mha", ".nii", ".png"):
        with pytest.raises(ValueError, match=rf"x\{suffix}: cannot be opened: Permission denied\."):
            load(tmp_path / f"x{suffix}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x\.mha"):
        MetaImageReader().read(tmp_path / "x.mha")


def test_one_file_per_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one file per image, found 2: a\.mha, b\.mha"):
        MetaImageReader().read(["a.mha", "b.mha"])


def test_a_flat_nifti_is_a_volume_of_one_slice(tmp_path: Path) -> None:
    affine = np.diag([-1.5, 1.2, 1.0, 1.0])
    for shape in ((7, 6), (7, 6, 1)):
        nib.save(nib.Nifti1Image(VOXELS[..., 0].reshape(shape), affine), tmp_path / f"{len(shape)}.nii.gz")
    chain = Compose(
        [LoadImageVolumed("image"), EnsureChannelFirstd("image"), Orientationd("image", axcodes="LPS", labels=None)]
    )
    flat, volume = (chain({"image": str(tmp_path / f"{dims}.nii.gz")})["image"] for dims in (2, 3))
    assert flat.shape == volume.shape == (1, 7, 6, 1)
    np.testing.assert_array_equal(flat, volume)
    np.testing.assert_array_equal(flat.affine, volume.affine)
    assert flat.pixdim.tolist() == pytest.approx([1.5, 1.2, 1])
    assert tuple(flat.meta["spatial_shape"]) == (7, 6, 1)
    nib.save(nib.Nifti1Image(VOXELS[:, 0, 0], affine), tmp_path / "1.nii.gz")
    with pytest.raises(ValueError, match=r"1\.nii\.gz: expected an image of 2 or 3 dimensions, found 1"):
        load(tmp_path / "1.nii.gz")


def test_changed_voxels_are_another_entry_of_the_cache(tmp_path: Path) -> None:
    sitk.WriteImage(volume("straight"), str(tmp_path / "x.mhd"))
    steps = Compose([LoadImageVolumed("image"), EnsureChannelFirstd("image")])
    records = [{"image": str(tmp_path / "x.mhd")}]
    before = cached_volumes(records, steps, tmp_path / "cache", num_classes=2)[0].image[2, 0, 3, 3]
    sitk.WriteImage(volume("straight") + 1, str(tmp_path / "x.mhd"))  # the header stays as it is
    after = cached_volumes(records, steps, tmp_path / "cache", num_classes=2)[0].image[2, 0, 3, 3]
    assert after == before + 1


def test_a_nifti_of_colours_has_their_channels(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (7, 6, 5, 3), dtype=np.uint8)
    rgb = np.ascontiguousarray(colours).view(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))[..., 0]
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "x.nii.gz")
    steps = Compose([LoadImageVolumed("image"), EnsureChannelFirstd("image")])
    np.testing.assert_array_equal(steps({"image": str(tmp_path / "x.nii.gz")})["image"], colours.transpose(3, 0, 1, 2))


NUMBERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_every_type_and_order_are_read(tmp_path: Path, kind: str, order: str) -> None:
    """Stored as they are, and with a slope and an intercept."""
    voxels = np.random.default_rng(0).integers(0, 100, (7, 6, 5)).astype(kind)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(kind)
    image = nib.Nifti1Image(voxels, np.eye(4), header)
    for name, slope in (("plain.nii", 1.0), ("scaled.nii.gz", 0.5)):
        image.header.set_slope_inter(slope, 3.0 if slope != 1 else 0.0)
        nib.save(image, tmp_path / name)
        expected = np.asarray(nib.load(tmp_path / name).dataobj, np.float64)
        np.testing.assert_allclose(load(tmp_path / name).numpy(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("bits", [64, 128])
def test_complex_voxels_are_refused(tmp_path: Path, bits: int) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), f"complex{bits}"), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(ValueError, match=rf"x\.nii: expected real voxels, found complex ones \(complex{bits}\)\."):
        load(tmp_path / "x.nii")


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_a_nifti_that_claims_too_much_is_named_before_memory_is_asked_for(tmp_path: Path, name: str) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((20000, 20000, 4))
    header.set_data_dtype(np.float64)
    header["vox_offset"] = 352
    content = header.binaryblock + bytes(4 + 20_000)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(
        ValueError, match=r"x\.nii\S* is damaged .* it contains 20352 bytes, the header claims 12800000352\."
    ):
        load(tmp_path / name)
