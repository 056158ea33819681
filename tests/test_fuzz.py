"""Fuzzing of external input: the outcome must be a correct result or one clear line.

The tests draw the same few examples in every run; ``make fuzz`` draws many others, and prints the number of inputs for
each outcome.
"""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from bundle.prepare.survey import Settings, survey
from bundle.share.verify import verify
from scripts.data.layouts.datalist import named_classes, read_class_values, read_datalist
from scripts.data.records import read_split
from scripts.networks import UNet
from scripts.utils.errors import raised_in
from scripts.utils.provenance import read_record, trained_size, write_record
from scripts.utils.schemas import SCHEMAS
from scripts.utils.tensors import load_state, save_tensors
from scripts.utils.validation import check

ROOT = Path(__file__).resolve().parents[1]
MANY = int(os.environ.get("SEMSIM_FUZZ", "0"))
OUTCOMES: Counter[tuple[str, str]] = Counter()
SECONDS = 20.0  # seconds per input, on a busy machine

fuzz = settings(
    max_examples=MANY or 40,
    derandomize=not MANY,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Executed code leaves a file in the test's folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def told() -> Any:
    yield
    if MANY:
        lines = [f"{kind:<12} {outcome:<60} {count:>7}" for (kind, outcome), count in sorted(OUTCOMES.items())]
        print("\n\n" + "\n".join(lines))


def outcome(kind: str, work: Callable[[], object]) -> None:
    """Process an input; the only allowed errors are lines of this package that start with their subject."""
    start, refusal = time.perf_counter(), None
    try:
        work()
    except (ValueError, FileNotFoundError) as error:
        refusal = error
    found = "right"
    if refusal is not None:
        text = str(refusal)
        assert raised_in(refusal, ROOT / "scripts", ROOT / "bundle"), repr(refusal)
        assert all(line.isprintable() and len(line) < 2500 for line in text.splitlines()), repr(text)
        assert text.count("\n") <= 6, text
        found = "refused: " + " ".join(text.rpartition("/")[2].split())[:48]
    assert not Path("executed").exists()
    assert time.perf_counter() - start < SECONDS
    OUTCOMES[kind, found] += 1


EVIL = [
    "$open('executed', 'w')",
    "$__import__('os').system('touch executed')",
    "%/etc/hostname",
    "@network",
    "a@#b",
    "../../x",
    "/etc/passwd",
    "\0",
    "\ud800",
    "a\nb",
    "",
    "x" * 5000,
]
KEYS = [
    "training",
    "validation",
    "test",
    "labels",
    "label_values",
    "image",
    "label",
    "case",
    "fold",
    "sha256",
    "0",
    "1",
]
KEYS += ["_target_", "_disabled_", "_mode_", *SCHEMAS["record"]["properties"], *EVIL]
words = st.sampled_from(EVIL) | st.sampled_from(["a.png", "b.png", "a_gt.png", "bone"]) | st.text(max_size=5)
plain = st.none() | st.booleans() | st.integers() | st.floats() | words
keys = st.sampled_from(KEYS)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=10
)


def written(value: Any) -> bytes:
    return json.dumps(value).encode()


@st.composite
def spoilt(draw: st.DrawFn, sound: bytes) -> bytes:
    """Bytes with some flipped, removed or appended."""
    content = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "end", "insert"]))
        if kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and content:
            length = draw(st.integers(1, 8))
            content[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "cut":
            del content[place : place + draw(st.integers(1, 64))]
        elif kind == "end":
            del content[place:]
        else:
            content[place:place] = draw(st.binary(min_size=1, max_size=16))
    return bytes(content)


# --- JSON ------------------------------------------------------------------------------------------------------------

entries = st.lists(st.just({"image": "a.png", "label": "a_gt.png"}) | st.just("b.png") | values, max_size=3) | values
datalists = st.dictionaries(keys, values, max_size=3).flatmap(
    lambda more: st.fixed_dictionaries({"training": entries}, optional={"labels": values, "label_values": values}).map(
        lambda lists: {**more, **lists}
    )
)


@fuzz
@given(datalists.map(written) | values.map(written) | spoilt(written({"training": ["a.png"], "labels": {"1": "x"}})))
@example(b"[" * 100_000)
@example(
    written({"training": ["x" * 5000, {"image": "a.png", "case": "a\nb"}], "test": [{"image": "b.png", "case": "\0"}]})
)
@example(written({"train": ["a\nb", "a\nb"]}))
@example(b'{"training": ' * 50_000)
@example(written({"\0": None, "x" * 5000: 3, "training": []}))
@example(b"\xef\xbb\xbf" + written({"training": ["a.png"]}))
@example(written({"training": ["a.png"], "labels": {"1": EVIL[0]}, "label_values": [EVIL[0], 1]}))
def test_datalists(content: bytes) -> None:
    for name in ("a.png", "b.png", "a_gt.png"):
        Path(name).touch()
    path = Path("list.json")
    path.write_bytes(content)
    outcome("datalist", lambda: read_datalist(path))

    def classes() -> None:
        names, stored = read_class_values(path)
        assert all(name.isprintable() and name[0] not in "$%@" for name in names.values())
        assert stored is None or all(np.isfinite(stored))
        named_classes({}, path)

    outcome("classes", classes)
    outcome("split", lambda: read_split(path))


@fuzz
@given(st.dictionaries(keys, values, max_size=4))
@example({"image_size": EVIL[0]})
@example({"license": "%x", "image_size": 0})
def test_records(more: dict[str, Any]) -> None:
    weights = Path("model.pt")
    weights.write_bytes(b"weights")
    write_record(weights, {"code": "version 0", "image_size": 128})
    sound = json.loads(weights.with_suffix(".json").read_text())
    weights.with_suffix(".json").write_bytes(written({**more, "sha256": sound["sha256"]}))

    def read() -> None:
        record = read_record(weights)
        assert record is not None
        check(record, "record", weights)
        assert 16 <= trained_size(weights, 224) <= 4096

    outcome("record", read)


# --- tensors, archives -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    save_tensors(dict(list(UNet(num_classes=2).state_dict().items())[:6]), path)
    return path


@fuzz
@given(data=st.data())
def test_weights(data: st.DataObject, weights: Path) -> None:
    expected = load_state(weights)
    path = Path("model.pt")
    path.write_bytes(data.draw(spoilt(weights.read_bytes())))

    def read() -> None:
        assert all(torch.equal(value, expected[name]) for name, value in load_state(path).items())

    outcome("weights", read)


def archive_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


SMALL = archive_of({f"b/{name}": b"{}" for name in ("configs/metadata.json", "configs/train.json", "large_files.yml")})
names = st.sampled_from(["b/a", "b/a/", "B/A", "b/../x", "/x", "b\\x", "C:/x", "b/a/c", "a", "b/\x1b", "b//a", "."])
archives = spoilt(SMALL) | st.dictionaries(names, st.binary(max_size=9), max_size=4).map(archive_of)


@fuzz
@given(archives)
def test_archives(content: bytes) -> None:
    path = Path("b_v1.zip")
    path.write_bytes(content)
    before = sorted(os.listdir())

    def read() -> None:
        results = verify(path)
        assert any(result.fault for result in results), "no input is a whole bundle"
        assert all("\n" not in result.fault for result in results)

    outcome("archive", read)
    assert sorted(os.listdir()) == before


# --- images ----------------------------------------------------------------------------------------------------------


def image_bytes(suffix: str) -> bytes:
    array = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    path = Path(f"sound{suffix}")
    if suffix.startswith(".nii"):
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])), path)
    elif suffix in (".mha", ".nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    else:
        Image.fromarray(array.astype(np.uint8)[..., 0]).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd", ".png", ".jpg"])
@fuzz
@given(data=st.data())
def test_images(data: st.DataObject, suffix: str) -> None:
    """Every error becomes a fault of the file, and the survey of a data set continues with the next one."""
    path = Path(f"image{suffix}")
    sound = image_bytes(suffix)
    header = {".nii": 352, ".mha": 300, ".nrrd": 280}.get(suffix, len(sound))  # the voxels may have any value
    path.write_bytes(data.draw(spoilt(sound[:header])) + sound[header:])
    (finding,) = survey([{"image": str(path), "case": "a"}], Settings(1, 2))
    for fault in finding.faults:
        assert fault.startswith(str(path))
        assert fault.isprintable(), repr(fault)
        assert len(fault) < 600
    if not finding.faults:
        assert finding.shape is not None
        assert 0 < np.prod(finding.shape) < 10**6
    OUTCOMES[
        f"image{suffix}", f"refused: {finding.faults[0][len(str(path)) :][:48]}" if finding.faults else "right"
    ] += 1
