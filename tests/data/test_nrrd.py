from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from scripts.data import LoadImageVolumed
from scripts.data.nrrd import read_nrrd_header


def save(path: Path, components: int = 1) -> np.ndarray:
    shape = (6, 5, 4) if components == 1 else (6, 5, 4, components)
    array = np.random.default_rng(0).integers(0, 99, shape).astype(np.int16)
    image = sitk.GetImageFromArray(array, isVector=components > 1)
    image.SetSpacing((1.5, 1.25, 8.0))
    image.SetOrigin((3.0, -4.0, 5.0))
    sitk.WriteImage(image, str(path), True)
    return array


@pytest.mark.parametrize("components", [1, 3])
def test_nrrd_lies_where_nifti_lies(components: int, tmp_path: Path) -> None:
    array = save(tmp_path / "x.nrrd", components)
    loaded = LoadImageVolumed("image")({"image": str(tmp_path / "x.nrrd")})["image"]
    np.testing.assert_array_equal(loaded.numpy(), array.transpose(2, 1, 0, *range(3, array.ndim)))
    save(tmp_path / "x.nii.gz")
    nifti = LoadImageVolumed("image")({"image": str(tmp_path / "x.nii.gz")})["image"]
    np.testing.assert_allclose(loaded.affine, nifti.affine, atol=1e-5)


def field(name: bytes, value: bytes) -> Callable[[bytes], bytes]:
    return lambda content: re.sub(rb"(?m)^" + name + rb": .*$", name + b": " + value, content, count=1)


def repacked(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def work(content: bytes) -> bytes:
        header, _, packed = content.partition(b"\n\n")
        return header + b"\n\n" + gzip.compress(change(gzip.decompress(packed)))

    return work


FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda content: content[:-40], "is damaged or truncated"),
    "without its end": (lambda content: content[:-4], "have no end"),
    "strange": (lambda content: b"no image", "or is damaged"),
    "empty": (lambda content: b"", "or is damaged"),
    "detached": (field(b"space", b"x\ndata file: x.raw"), "are in another file"),
    "claims too much": (
        field(b"sizes", b"20000 20000 4"),
        "contains 240 bytes .* header claims 3200000000",
    ),
    "claims one more": (field(b"sizes", b"4 5 7"), "contains 240 bytes of voxels, the header claims 280"),
    "holds more": (repacked(lambda voxels: voxels + b"more"), "the header claims 240"),
    "no sizes": (field(b"sizes", b"4 -5 6"), r"expected some voxels in 2 or 3 dimensions, found sizes 4 -5 6"),
    "no numbers": (field(b"type", b"block"), "expected whole or real numbers as voxels, found type block"),
    "as text": (field(b"encoding", b"ascii"), "raw or compressed by gzip, found encoding ascii"),
    "skips": (field(b"encoding", b"gzip\nbyte skip: -1"), "directly after the header, found byte skip -1"),
    "many dimensions": (field(b"dimension", b"99999999"), "or is damaged"),
    "no volume": (field(b"space directions", b"(0,0,0) (0,1,0) (0,0,1)"), "expected"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_files_are_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    path = tmp_path / "x.nrrd"
    save(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        LoadImageVolumed("image")({"image": str(path)})
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_no_flipped_bit_of_a_packed_volume_passes(tmp_path: Path) -> None:
    path = tmp_path / "x.nrrd"
    expected = save(path).transpose(2, 1, 0)
    sound = path.read_bytes()
    start = sound.index(b"\n\n") + 2
    for place in range(start, len(sound), 3):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        with suppress(ValueError):  # bits of gzip's own header say nothing of the voxels
            np.testing.assert_array_equal(LoadImageVolumed("image")({"image": str(path)})["image"].numpy(), expected)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_numbers_of_every_type_are_read(tmp_path: Path, kind: str, packed: bool) -> None:
    array = np.random.default_rng(0).integers(0, 99, (6, 5, 4)).astype(kind)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "x.nrrd"), packed)
    loaded = LoadImageVolumed("image")({"image": str(tmp_path / "x.nrrd")})["image"]
    np.testing.assert_array_equal(loaded.numpy(), array.transpose(2, 1, 0))


TYPES = [
    "signed char",
    "unsigned char",
    "uchar",
    "int8",
    "uint8_t",
    "short int",
    "unsigned short int",
    "ushort",
    "int16",
]
TYPES += ["signed int", "uint", "uint32_t", "long long int", "unsigned long long", "ulonglong", "int64", "float"]


@pytest.mark.parametrize("name", TYPES)
def test_a_type_has_the_bytes_that_itk_reads(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.nrrd"
    header = f"NRRD0004\ntype: {name}\ndimension: 3\nsizes: 4 5 6\nendian: little\nencoding: raw\n\n".encode()
    path.write_bytes(header + bytes(120 * 8))
    needed = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).nbytes
    assert read_nrrd_header(path) == (needed, len(header), False)
