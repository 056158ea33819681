from __future__ import annotations

import gzip
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from scripts.data import LoadImageVolumed
from scripts.data.metaimage import TYPES
from scripts.data.readers import read_grid, voxel_files

SHAPE = (3, 4, 5)
VOXELS = np.arange(60, dtype=np.int16).reshape(5, 4, 3)  # z, y, x
HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "1 2 3",
    "ElementSpacing": "0.5 0.5 4",
    "DimSize": "3 4 5",
    "ElementType": "MET_SHORT",
}


def write(path: Path, data: str = "LOCAL", voxels: bytes = b"", more: bytes = b"", **fields: str | None) -> Path:
    """A MetaImage with these fields, ``more`` after the header and ``voxels`` in the file ``data``."""
    lines = {**HEADER, **fields, "ElementDataFile": data}
    text = "".join(f"{name} = {value}\n" for name, value in lines.items() if value is not None)
    local = data.lower() == "local"
    path.write_bytes(text.encode() + (voxels if local else more))
    if not local and voxels:
        (path.parent / data).write_bytes(voxels)
    return path


def load(path: Path) -> np.ndarray:
    return LoadImageVolumed("image")({"image": str(path)})["image"].numpy()


def slices(folder: Path) -> list[str]:
    for k in range(5):
        VOXELS[k].tofile(folder / f"s{k + 1}.raw")
    return [f"s{k + 1}.raw" for k in range(5)]


RAW = VOXELS.tobytes()
PACKED = zlib.compress(RAW)
SOUND = {
    "local": {"voxels": RAW},
    "Local": {"data": "Local", "voxels": RAW},
    "beside": {"data": "a b.raw", "voxels": RAW},
    "packed": {"voxels": PACKED, "CompressedData": "True", "CompressedDataSize": str(len(PACKED))},
    "packed by gzip": {"data": "x.gz", "voxels": gzip.compress(RAW), "CompressedData": "True"},
    "after a header": {"data": "x.raw", "voxels": b"head" + RAW, "HeaderSize": "4"},
    "at the end": {"data": "x.raw", "voxels": b"any length" + RAW, "HeaderSize": "-1"},
    "as text": {"data": "x.txt", "voxels": " ".join(map(str, range(60))).encode() + b"\n", "BinaryData": "False"},
    "list": {"data": "LIST", "more": b"".join(b"s%d.raw\n" % (k + 1) for k in range(5))},
    "list of slices": {"data": "LIST 2", "more": b"".join(b"s%d.raw\n" % (k + 1) for k in range(5))},
    "pattern": {"data": "s%d.raw 1 5 1"},
    "pattern alone": {"data": "s%d.raw"},
    "odd fields": {"voxels": RAW, "Comment": "a = b", "Modality": "MET_MOD_MR", "Seq_Frame0001": "1"},
    "whole numbers with a point": {"voxels": RAW, "DimSize": "3 4 5.0"},
}


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("name", SOUND)
def test_what_itk_reads_is_read(tmp_path: Path, name: str, suffix: str) -> None:
    slices(tmp_path)
    path = write(tmp_path / f"x{suffix}", **SOUND[name])  # type: ignore[arg-type]
    np.testing.assert_array_equal(load(path), VOXELS.transpose(2, 1, 0))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), VOXELS)
    shape, affine = read_grid(path)
    assert shape == SHAPE
    np.testing.assert_array_equal(np.diag(affine), [-0.5, -0.5, 4, 1])


@pytest.mark.parametrize("big", ["True", "False"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", TYPES)
def test_voxels_of_every_type_are_itks(tmp_path: Path, kind: str, channels: int, big: str) -> None:
    dtype = np.dtype((">" if big == "True" else "<") + TYPES[kind])
    voxels = np.arange(60 * channels).astype(dtype)
    fields = {"ElementType": kind, "ElementNumberOfChannels": str(channels), "BinaryDataByteOrderMSB": big}
    path = write(tmp_path / "x.mha", voxels=voxels.tobytes(), **fields)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(load(path), found.transpose(2, 1, 0, *range(3, found.ndim)))


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_files_of_the_voxels(tmp_path: Path, suffix: str) -> None:
    names = slices(tmp_path)
    for kind in ("list", "pattern"):
        path = write(tmp_path / f"x{suffix}", **SOUND[kind])  # type: ignore[arg-type]
        assert [file.name for file in voxel_files(path)] == names
    assert voxel_files(write(tmp_path / f"x{suffix}", "y.raw", RAW)) == (tmp_path / "y.raw",)
    assert voxel_files(write(tmp_path / f"x{suffix}", voxels=RAW)) == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"CompressedData": "True", "voxels": RAW}, r"x\.mha is damaged or truncated: its compressed voxels end in"),
        ({"CompressedData": "True", "voxels": zlib.compress(RAW)[:-2]}, "its compressed voxels have no end"),
        (
            {"CompressedData": "True", "voxels": zlib.compress(RAW[:-2])},
            "contains 118 bytes of voxels, the header claims",
        ),
        ({"CompressedData": "True", "voxels": zlib.compress(RAW * 2)}, "bytes of voxels, the header claims 120"),
        ({"CompressedData": "True", "voxels": zlib.compress(RAW), "HeaderSize": "2"}, "are not supported"),
        ({"data": "LIST"}, "expected a file for each of the 5 slices, found 0"),
        ({"data": "LIST", "more": b"s1.raw\n"}, "expected a file for each of the 5 slices, found 1"),
        ({"data": "LIST", "more": b"s1.raw\n" * 4 + b"gone.raw\n"}, "file of its voxels, 'gone.raw', is missing"),
        ({"data": "LIST 3", "more": b"s1.raw\n"}, "expected a LIST of a file for each slice, found .*LIST 3"),
        ({"data": "s%d.raw 1 4 1"}, "expected a file for each of the 5 slices, found 4"),
        ({"data": "s%d.raw 1 99999999999 1"}, "expected a file for each of the 5 slices"),
        ({"data": "%s%n.raw 1 5 1"}, "expected a pattern such as"),
        ({"data": "gone.raw"}, "file of its voxels, 'gone.raw', is missing"),
        ({"data": "y.raw", "voxels": RAW + b"more"}, r"\(with 'y\.raw'\) .* contains 124 bytes .* claims 120"),
        ({"data": "y.raw", "voxels": RAW[:-1]}, "contains 119 bytes of voxels, the header claims 120"),
        ({"data": "y.txt", "voxels": b"1 2 3", "BinaryData": "False"}, "contains 6 bytes"),
        ({"data": ""}, "found an empty ElementDataFile"),
        ({"NDims": "-1"}, "expected an image of 2 or 3 dimensions, found NDims = -1"),
        ({"NDims": "99999999"}, "found NDims = 99999999"),
        ({"NDims": "4"}, "expected an image of 2 or 3 dimensions, found NDims = 4"),
        ({"NDims": None}, "expected a whole number as NDims, found none"),
        ({"DimSize": "3 4"}, "expected 3 finite numbers as DimSize, found 3 4"),
        ({"DimSize": "3 4 -5"}, "expected some voxels, found DimSize = 3 4 -5"),
        ({"DimSize": "20000 20000 4"}, "the header claims 3200000000"),
        ({"ElementType": "MET_OTHER"}, "expected an ElementType of MET_CHAR, .* found MET_OTHER"),
        ({"ElementNumberOfChannels": "0"}, "0 channels"),
        ({"ElementSpacing": "1 0 1"}, r"^\S*x\.mha: expected spacing above 0, found ElementSpacing = 1 0 1\.$"),
        ({"ElementSpacing": "1 nan 1"}, "expected 3 finite numbers as ElementSpacing"),
        ({"Offset": "1 inf 1"}, "expected 3 finite numbers as Offset"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "expected axes that span the space, found TransformMatrix"),
    ],
)
def test_a_header_that_lies_is_named_before_itk_reads(
    tmp_path: Path, fields: dict[str, str | None], message: str
) -> None:
    slices(tmp_path)
    path = write(tmp_path / "x.mha", **{"voxels": RAW if "data" not in fields else b"", **fields})  # type: ignore[arg-type]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load(path)
    assert str(error.value).startswith(str(path))


def test_a_field_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mha", voxels=RAW)
    path.write_bytes(b"DimSize = 3 4 6\n" + path.read_bytes())
    with pytest.raises(ValueError, match="the header says both DimSize = 3 4 6 and DimSize = 3 4 5"):
        load(path)


def test_no_flipped_bit_of_a_compressed_volume_passes(tmp_path: Path) -> None:
    path = tmp_path / "x.mha"
    voxels = np.random.default_rng(0).integers(0, 900, (6, 7, 8)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), True)
    sound = path.read_bytes()
    start = sound.index(b"LOCAL\n") + 6
    for place in range(start, len(sound), 7):
        for bit in (1, 128):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ bit]) + sound[place + 1 :])
            with pytest.raises(ValueError, match=r"x\.mha is damaged or truncated"):
                load(path)


def test_a_header_that_claims_too_much_asks_for_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mha", voxels=bytes(20_000), DimSize="20000 20000 4")
    code = (
        "import resource, sys; from scripts.data import LoadImageVolumed\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = used()\n"
        "try: LoadImageVolumed('image')({'image': sys.argv[1]})\n"
        "except ValueError: print(used() - before)\n"
    )
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 50_000  # KiB
