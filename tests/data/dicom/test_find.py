"""Volumes found in DICOM files: equal to the phantom's own arrays and to what SimpleITK reads."""

from __future__ import annotations

import copy
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd
from pydicom import Dataset, dcmread, examples, uid
from pydicom.encaps import encapsulate

from scripts.data.dicom.find import Findings, find_volumes
from scripts.data.dicom.pixels import read_voxels
from scripts.data.dicom.volume import Frame
from scripts.data.images import find_images
from scripts.data.readers import LoadImageVolumed
from tests.dicom_study import OBLIQUE, SECRETS, Study, archive, pixels, write

TURNS = {
    "straight": np.eye(3),
    "oblique": OBLIQUE,
    "sagittal": np.eye(3)[:, [1, 2, 0]],
    "head first": np.diag([1, -1, -1]),
}
STRANGERS = Path(pydicom.data.__file__).parent / "test_files"
FORMS: dict[str, Callable[[Study], list[Dataset]]] = {
    "cine": Study.cine,
    "a series per slice": Study.series_per_slice,
    "enhanced": lambda study: [study.enhanced()],
}


def lines(found: Findings) -> list[str]:
    return [*found.skipped, *found.refused]


def check(found: Findings, study: Study, phases: list[int] | None = None) -> None:
    assert found.refused == []
    expected = study.volumes if phases is None else [study.volumes[phase] for phase in phases]
    assert len(found.volumes) == len(expected)
    for volume, array in zip(found.volumes, expected, strict=True):
        np.testing.assert_array_equal(read_voxels(volume.frames), array)
        np.testing.assert_allclose(volume.affine, study.affine, atol=1e-9)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("form", FORMS)
def test_a_study_is_read_back_whatever_its_form_order_and_names(tmp_path: Path, form: str, turn: str) -> None:
    study = Study(turn=TURNS[turn])
    datasets = FORMS[form](study)
    order = np.random.default_rng(2).permutation(len(datasets))
    for i, ds in enumerate(datasets):
        ds.InstanceNumber = 7 - i  # says nothing
    write([datasets[i] for i in order], tmp_path, lambda i: f"{i % 3}.{i}.IMA")
    check(find_volumes(tmp_path, phase="all"), study)


@pytest.mark.parametrize("turn", TURNS)
def test_a_series_is_what_simpleitk_reads(tmp_path: Path, turn: str) -> None:
    study = Study(turn=TURNS[turn])
    datasets = study.cine(phases=[2])
    for k, ds in enumerate(datasets):
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 0.5 + k, -100, "US"
    write(datasets, tmp_path, lambda i: f"{(i * 7) % 11}.dcm")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    volume = find_volumes(tmp_path).volumes[0]
    np.testing.assert_allclose(read_voxels(volume.frames), sitk.GetArrayFromImage(image).T, rtol=1e-6)
    for index in ((0, 0, 0), (5, 3, 2), tuple(n - 1 for n in image.GetSize())):
        left, back, up = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], [-left, -back, up], atol=1e-4)


def test_an_export_with_other_series_in_one_folder(tmp_path: Path) -> None:
    study = archive(tmp_path, turn=OBLIQUE)
    found = find_volumes(tmp_path, phase="all")
    check(found, study)
    reasons = sorted(line.partition("): ")[2] for line in found.skipped)
    assert [reason.split()[:2] for reason in reasons] == [
        ["Basic", "Text"],
        ["a", "derived"],
        ["a", "localizer."],
        ["a", "single"],
    ]
    assert not any(secret in line for line in lines(found) for secret in SECRETS)


def test_a_dicomdir_and_copies_do_no_harm(tmp_path: Path) -> None:
    study = Study(phases=1)
    paths = write(study.cine(), tmp_path / "a")
    directory = study.other(uid.MediaStorageDirectoryStorage, "")
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    (tmp_path / "again.dcm").write_bytes(paths[0].read_bytes())
    (tmp_path / "autorun.inf").write_text("[autorun]")
    found = find_volumes(tmp_path)
    check(found, study)
    assert found.skipped == ["1 file is not DICOM.", "1 file is a copy of others."]


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("all", [0, 1, 2, 3]),
        (3, [2]),
        ("2,4", [1, 3]),
        ("ed", [0]),
        ("ed,es", [0, 2]),
        (("es", "ed"), [0, 2]),
        ([1], [0]),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_phases_are_chosen(tmp_path: Path, form: str, phase: object, expected: list[int]) -> None:
    study = Study()
    write(FORMS[form](study), tmp_path)
    check(find_volumes(tmp_path, phase=phase), study, expected)


def test_phases_are_asked_for(tmp_path: Path) -> None:
    write(Study().cine(), tmp_path)
    with pytest.raises(ValueError, match=r"4 phases, trigger times 0 to 96\.1 ms: choose by --phase all"):
        find_volumes(tmp_path)
    with pytest.raises(ValueError, match="phase: expected all, a number from 1, ed or es"):
        find_volumes(tmp_path, phase="first")
    assert (
        find_volumes(tmp_path, phase="5")
        .refused[0]
        .endswith("no phase 5: it has 4 phases, trigger times 0 to 96.1 ms.")
    )


@pytest.mark.parametrize("by", ["temporal", "trigger"])
def test_a_phase_that_lacks_a_slice_is_named_and_the_others_are_read(tmp_path: Path, by: str) -> None:
    study = Study()
    datasets = study.cine()
    if by == "temporal":
        for ds in datasets:
            ds.TemporalPositionIdentifier = 1 + round(float(ds.TriggerTime) / 31.5)
            del ds.TriggerTime
    del datasets[5]  # second slice, second phase
    write(datasets, tmp_path)
    found = find_volumes(tmp_path, phase="all")
    assert [line.partition("): ")[2] for line in found.refused] == ["phase 2 lacks 1 slice."]
    found.refused.clear()
    check(found, study, [0, 2, 3])


def test_any_object_with_pixels_and_position_is_a_scan(tmp_path: Path) -> None:
    study = Study(phases=1)
    datasets = study.cine()
    for ds in datasets:
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.SecondaryCaptureImageStorage
    write(datasets, tmp_path)
    check(find_volumes(tmp_path), study)


def test_modalities_are_not_mixed_and_series_can_be_chosen(tmp_path: Path) -> None:
    study = Study(phases=1)
    scan = study.cine("ct", 2)
    for ds in scan:
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.CTImageStorage
        ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    write(study.cine("cine SA"), tmp_path / "1")
    write(scan, tmp_path / "2")
    with pytest.raises(ValueError, match=r"several modalities, CT \(1\), MR \(1\): choose one by --modality"):
        find_volumes(tmp_path)
    assert len(find_volumes(tmp_path, modality="CT").volumes) == 1
    check(find_volumes(tmp_path, series=r"cine.*sa\b"), study)
    with pytest.raises(ValueError, match="series: expected a regular expression, found '\\('"):
        find_volumes(tmp_path, series="(")
    with pytest.raises(ValueError, match="modality: expected MR or CT, found 'XA'"):
        find_volumes(tmp_path, modality="XA")


def test_an_enhanced_ct_is_read_in_its_units(tmp_path: Path) -> None:
    study = Study(phases=1)
    ds = study.enhanced(slope=2, intercept=-1024)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.EnhancedCTImageStorage
    ds.Modality = "CT"
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.CTImageFrameTypeSequence = shared.MRImageFrameTypeSequence
    del shared.MRImageFrameTypeSequence
    write([ds], tmp_path)
    (volume,) = find_volumes(tmp_path).volumes
    np.testing.assert_array_equal(read_voxels(volume.frames), 2.0 * study.volumes[0] - 1024)
    np.testing.assert_allclose(volume.affine, study.affine, atol=1e-9)


def test_the_smallest_value_may_be_the_brightest(tmp_path: Path) -> None:
    """MONOCHROME1, as SimpleITK reads it, up to a constant; Hounsfield units are kept."""
    study = Study(phases=1)
    for modality, sign in (("MR", -1), ("CT", 1)):
        slices = study.cine()
        for ds in slices:
            ds.PhotometricInterpretation, ds.Modality = "MONOCHROME1", modality
        write(slices, tmp_path / modality)
        voxels = read_voxels(find_volumes(tmp_path / modality).volumes[0].frames).astype(float)
        np.testing.assert_array_equal(voxels, sign * study.volumes[0].astype(float))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "MR")))
    theirs = sitk.GetArrayFromImage(reader.Execute()).T.astype(float)
    difference = theirs - -study.volumes[0].astype(float)
    assert difference.std() == 0


def test_names_are_pseudonyms_that_depend_on_the_salt(tmp_path: Path) -> None:
    archive(tmp_path)
    names = [{str(v) for v in find_volumes(tmp_path, "ed", salt=salt).volumes} for salt in (b"a", b"b", b"a")]
    assert names[0] == names[2] != names[1]
    assert not any(secret in name for name in names[0] for secret in SECRETS)


def test_a_volume_is_a_path_that_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    write(Study(phases=1).cine(), tmp_path)
    volume = find_volumes(tmp_path).volumes[0]
    for same in (pickle.loads(pickle.dumps(volume)), copy.deepcopy(volume)):
        assert type(same) is type(volume)
        assert (same, same.frames, same.case) == (volume, volume.frames, volume.case)
        np.testing.assert_array_equal(same.affine, volume.affine)
    assert Path(volume).parent == tmp_path
    assert not Path(volume).exists()


def test_a_volume_loads_as_its_nifti_does(tmp_path: Path) -> None:
    study = Study(turn=OBLIQUE, phases=1)
    write(study.cine(), tmp_path)
    records = find_images(tmp_path)
    image = Compose([LoadImageVolumed("image"), EnsureChannelFirstd("image")])(records[0])["image"]
    assert isinstance(image, MetaTensor)
    np.testing.assert_array_equal(image[0], study.volumes[0])
    np.testing.assert_allclose(image.affine, study.affine, atol=1e-9)
    assert image.meta["filename_or_obj"] == str(records[0]["image"])


# --- photographs

PICTURE = np.stack(np.broadcast_arrays(np.arange(80)[:, None] * 3, np.arange(96)[None] * 2, 40), -1)
SMOOTH = PICTURE.astype(np.uint8)  # 80 rows, 96 columns


def read_photograph(folder: Path) -> np.ndarray:
    found = find_volumes(folder, photographs=True)
    assert lines(found) == []
    voxels = read_voxels(found.volumes[0].frames)
    np.testing.assert_array_equal(found.volumes[0].affine, np.diag([-1, -1, 1, 1]))  # as other photographs'
    assert voxels.shape[2:] == (1, 3)
    return voxels[:, :, 0].swapaxes(0, 1)


@pytest.mark.parametrize(
    "kind", [uid.VLPhotographicImageStorage, uid.SecondaryCaptureImageStorage, uid.DermoscopicPhotographyImageStorage]
)
def test_a_photograph(tmp_path: Path, kind: str) -> None:
    write([Study().photograph(SMOOTH, kind=kind)], tmp_path)
    np.testing.assert_array_equal(read_photograph(tmp_path), SMOOTH)
    assert find_volumes(tmp_path).skipped[0].endswith("a colour picture, expected a scan.")


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEG2000, uid.RLELossless, uid.JPEGLSLossless])
def test_a_compressed_photograph(tmp_path: Path, syntax: uid.UID) -> None:
    ds = Study().photograph(SMOOTH)
    options = {"j2k_psnr": [60]} if syntax == uid.JPEG2000 else {}
    if syntax in (uid.JPEG2000Lossless, uid.JPEG2000):
        ds.PhotometricInterpretation = "YBR_RCT" if syntax == uid.JPEG2000Lossless else "YBR_ICT"
    ds.compress(syntax, generate_instance_uid=False, **options)
    write([ds], tmp_path)
    np.testing.assert_allclose(read_photograph(tmp_path), SMOOTH, atol=2 if options else 0)


def test_colour_spaces_and_jpeg_come_out_as_red_green_and_blue(tmp_path: Path) -> None:
    """pydicom's pictures of one scene in each of these colour spaces, read by pydicom as RGB."""
    for i, name in enumerate(("rgb_color", "ybr_color", "palette_color")):
        ds = getattr(examples, name)
        single = copy.deepcopy(ds)
        single.file_meta.MediaStorageSOPClassUID = single.SOPClassUID = uid.SecondaryCaptureImageStorage
        frames = int(ds.get("NumberOfFrames", 1))
        if frames > 1:
            continue
        single.save_as(tmp_path / f"{i}")
    found = find_volumes(tmp_path, photographs=True)
    assert len(found.volumes) == 2
    for volume in found.volumes:
        assert read_voxels(volume.frames).dtype == np.uint8


def test_a_jpeg_photograph_in_ybr(tmp_path: Path) -> None:
    """pydicom's test picture: bands of pure colours."""
    source = STRANGERS / "SC_rgb_jpeg_dcmtk.dcm"
    (tmp_path / "x").write_bytes(source.read_bytes())
    assert dcmread(source).PhotometricInterpretation == "YBR_FULL"
    shown = read_photograph(tmp_path)
    for row, colour in ((5, (255, 0, 0)), (25, (0, 255, 0)), (45, (0, 0, 255))):
        np.testing.assert_allclose(shown[row, 50], colour, atol=6)


# --- other files, and damaged ones


def test_none_of_pydicoms_own_files_passes_for_a_volume_or_breaks_the_search(tmp_path: Path) -> None:
    for i, source in enumerate(sorted(STRANGERS.glob("*.dcm"))):
        (tmp_path / f"{i:03d}_{source.name}").write_bytes(source.read_bytes())
    study = Study(phases=1)
    write(study.cine(), tmp_path / "study")
    found = find_volumes(tmp_path)
    assert len(found.volumes) == 1
    np.testing.assert_array_equal(read_voxels(found.volumes[0].frames), study.volumes[0])
    assert len(lines(found)) > 20
    assert all("\n" not in line for line in lines(found))
    shapes = {outcome(volume.frames) for volume in find_volumes(tmp_path, photographs=True).volumes}
    assert "a photograph" in shapes
    assert all(shape == "a photograph" or "expected a photograph of 8 bits" in shape for shape in shapes)


def outcome(frames: tuple[Frame, ...]) -> str:
    try:
        return "a photograph" if read_voxels(frames).shape[2:] == (1, 3) else "something else"
    except ValueError as error:
        return str(error)


def each(change: Callable[[Dataset], object], which: slice = slice(None)) -> Callable[[list[Dataset]], None]:
    def apply(datasets: list[Dataset]) -> None:
        for ds in datasets[which]:
            change(ds)

    return apply


def shift(ds: Dataset, axis: int, mm: float) -> None:
    position = [float(v) for v in ds.ImagePositionPatient]
    position[axis] += mm
    ds.ImagePositionPatient = position


def wrong(**values: object) -> Callable[[Dataset], None]:
    return lambda ds: ds.update(Dataset()) or ([setattr(ds, key, value) for key, value in values.items()] and None)


def duplicate(datasets: list[Dataset]) -> None:
    again = copy.deepcopy(datasets[0])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    datasets.append(again)


def other_size(datasets: list[Dataset]) -> None:
    pixels(datasets[1], np.zeros((8, 9), np.int16))


def without(keyword: str) -> Callable[[Dataset], None]:
    return lambda ds: delattr(ds, keyword)


def syntax(name: str) -> Callable[[Dataset], None]:
    def change(ds: Dataset) -> None:
        ds.file_meta.TransferSyntaxUID = uid.UID(name)
        ds.PixelData = encapsulate([bytes(64)])

    return change


DAMAGE: dict[str, tuple[Callable[[list[Dataset]], object], str]] = {
    "a slice is missing": (lambda d: d.pop(2), r"distances of slices from 8\.50 to 17\.00 mm: a slice is missing\."),
    "uneven": (lambda d: shift(d[1], 2, 3.0), r"distances of slices from 5\.50 to 11\.50 mm: uneven\."),
    "tilted": (
        lambda d: [shift(ds, 1, 3.0 * i) for i, ds in enumerate(d)],
        "slices shifted by up to .* gantry",
    ),
    "twice": (duplicate, "up to 2 images at one position with neither different temporal indices nor trigger times"),
    "sizes": (other_size, r"images of different sizes: 1 of 8 x 9, "),
    "spacing": (each(wrong(PixelSpacing=[3, 3]), slice(1)), "images of different pixel spacing"),
    "no spacing": (each(without("PixelSpacing"), slice(1)), "no position, orientation or pixel spacing"),
    "no position": (each(without("ImagePositionPatient")), "no position, orientation or pixel spacing"),
    "no orientation": (each(without("ImageOrientationPatient")), "no position, orientation or pixel spacing"),
    "flat orientation": (
        each(wrong(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])),
        "an orientation that is not a pair of perpendicular unit vectors",
    ),
    "zero spacing": (each(wrong(PixelSpacing=[0, 0])), "a pixel spacing that is not positive"),
    "no pixels": (each(without("PixelData"), slice(2)), r"2 of \d files: no pixel data"),
    "no rows": (each(without("Rows"), slice(1)), "lacks the number of rows, columns or bits"),
    "short": (each(wrong(PixelData=b"\0" * 64), slice(1)), r"1 of \d files: damaged or truncated"),
    "unknown syntax": (each(syntax("1.2.3.4.5.6.7")), "the transfer syntax is unknown or has no decoder"),
    "video": (each(syntax(uid.MPEG2MPML)), "the transfer syntax is unknown or has no decoder"),
    "phase images": (each(wrong(ImageType=["ORIGINAL", "PRIMARY", "P"])), r"not a magnitude image \(P\)"),
    "map": (each(wrong(ImageType=["DERIVED", "PRIMARY", "ADC"])), r"a derived map \(ADC\)"),
    "other class": (
        each(wrong(SOPClassUID=uid.UltrasoundImageStorage)),
        "Ultrasound Image Storage: not an image to segment",
    ),
    "private class": (each(wrong(SOPClassUID="1.2.3")), "an unknown kind of object: not an image to segment"),
    "presentation": (
        each(wrong(SOPClassUID=uid.GrayscaleSoftcopyPresentationStateStorage)),
        "Presentation State Storage",
    ),
    "pdf": (each(wrong(SOPClassUID=uid.EncapsulatedPDFStorage)), "Encapsulated PDF Storage: not an image to segment"),
    "colour": (each(wrong(SamplesPerPixel=3)), "a colour picture among scans"),
    "two slices": (lambda d: d.__delitem__(slice(2, None)), "only 2 slices, not a stack"),
    "no study": (each(without("StudyInstanceUID")), "the study and series are missing"),
    "frames": (
        each(wrong(NumberOfFrames=3, PixelData=bytes(1 << 16)), slice(1)),
        "3 frames without a description of each",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_with_a_series_is_one_line_and_the_others_are_read(tmp_path: Path, damage: str) -> None:
    change, expected = DAMAGE[damage]
    sound, damaged = Study(seed=1, phases=1), Study(phases=1)
    datasets = damaged.cine()
    for ds in datasets:
        del ds.TriggerTime
    change(datasets)
    write(sound.cine(), tmp_path / "a")
    write(datasets, tmp_path / "b")
    found = find_volumes(tmp_path)
    assert len(lines(found)) == 1, lines(found)
    assert re.search(expected, lines(found)[0]), lines(found)[0]
    assert not any(secret in lines(found)[0] for secret in SECRETS)
    found.refused.clear()
    check(found, sound)


@pytest.mark.parametrize("length", [0, 100, 131, 140, 200, 400, 700])
def test_a_file_that_is_cut_in_its_header_is_one_line(tmp_path: Path, length: int) -> None:
    study = Study(seed=1, phases=1)
    write(study.cine(), tmp_path / "a")
    path = write([Study(phases=1).cine()[0]], tmp_path / "b")[0]
    path.write_bytes(path.read_bytes()[:length])
    found = find_volumes(tmp_path)
    assert len(found.volumes) == 1
    assert len(lines(found)) == 1, lines(found)
    assert not any(secret in lines(found)[0] for secret in SECRETS)


def test_noise_in_headers_is_never_more_than_lines(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    whole = write([Study(phases=1).cine()[0]], tmp_path / "whole")[0].read_bytes()
    for i in range(60):
        noisy = bytearray(whole)
        for place in rng.integers(132, 1200, 4):
            noisy[place] = rng.integers(256)
        (tmp_path / "whole" / f"{i}").write_bytes(noisy)
    found = find_volumes(tmp_path)
    assert found.volumes == []
    assert all("\n" not in line and not any(secret in line for secret in SECRETS) for line in lines(found))


def test_a_damaged_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    datasets = Study(phases=1).cine()
    for ds in datasets:
        ds.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    paths = write(datasets, tmp_path)
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[: len(content) - 600])
    volume = find_images(tmp_path)[0]["image"]
    with pytest.raises(
        ValueError, match=r"_\w{10}\.dcm: its pixels cannot be decoded: damaged or truncated\."
    ) as error:
        LoadImageVolumed("image")({"image": volume})
    assert "\n" not in str(error.value)


def test_inference_finds_volumes_beside_files_and_says_what_it_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive(tmp_path / "a")
    sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkInt16), str(tmp_path / "x.nii.gz"))
    with caplog.at_level(logging.INFO):
        records = find_images(tmp_path, phase="ed")
    assert [Path(record["image"]).suffix for record in records] == [".gz", ".dcm"]
    assert sum("Skipped: " in message for message in caplog.messages) == 5  # the NIfTI is no DICOM
    with pytest.raises(FileNotFoundError, match=r"No DICOM volume to segment in .*: .* a localizer"):
        find_images(next(p for p in (tmp_path / "a").iterdir() if "LOCALIZER" in str(dcmread(p).get("ImageType"))))
