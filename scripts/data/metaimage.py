"""MetaImage: headers are validated before ITK reads them, and voxels are read here.

ITK does not reject wrong headers: it invents voxels if a compressed stream is damaged or files are missing from a list,
allocates all memory that a header claims, and ends the process for an absurd number of dimensions. It is used only for
the position of the voxels.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.utils.files import check_readable

__all__ = ["MetaHeader", "inflate", "printable", "read_header", "read_voxels"]

TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
LONGEST = 1 << 20  # bytes of a header, a list of files included
LINE = re.compile(rb"^[ \t]*([^\s=:]+)[ \t]*[=:][ \t]*(.*?)[ \t\r]*$")
LOCAL = ("LOCAL", "Local", "local")
MATRIX = ("TransformMatrix", "Orientation", "Rotation")
PLACE = ("Offset", "Origin", "Position")
SIZE = ("ElementSpacing", "ElementSize")


@dataclass(frozen=True)
class MetaHeader:
    """The voxels of an image according to its header.

    Attributes:
        path: the header's file.
        shape: numbers of voxels ``(x, y)`` or ``(x, y, z)``.
        channels: number of channels.
        dtype: type of the numbers.
        files: the files of the voxels, in order; the header's own if they follow it.
        start: their offset in each file, in bytes; -1: they are at the end of the file.
        compressed: whether they are compressed.
        text: whether they are written as text.
    """

    path: Path
    shape: tuple[int, ...]
    channels: int
    dtype: np.dtype
    files: tuple[Path, ...]
    start: int
    compressed: bool
    text: bool

    @property
    def others(self) -> tuple[Path, ...]:
        """The files other than the header."""
        return tuple(file for file in self.files if file != self.path)


def read_header(path: Path) -> MetaHeader:
    """Read and validate the header of a MetaImage.

    Args:
        path: ``.mhd`` or ``.mha`` file.

    Raises:
        ValueError: if it is not a header, is inconsistent, or lacks the position of the voxels.
        FileNotFoundError: if it or a file that it names is missing.
    """
    check_readable(path)
    with open(path, "rb") as stream:
        content = stream.read(LONGEST)
    fields, start = _fields(path, content)
    dims = _whole(path, fields, "NDims")
    if dims not in (2, 3):
        raise ValueError(f"{path}: expected an image of 2 or 3 dimensions, found NDims = {fields['NDims']}.")
    shape = [int(n) if n == int(n) else 0 for n in _numbers(path, fields, "DimSize", dims)]
    channels = _whole(path, fields, "ElementNumberOfChannels") if "ElementNumberOfChannels" in fields else 1
    if min(shape) < 1 or channels < 1:
        raise ValueError(f"{path}: expected some voxels, found DimSize = {fields['DimSize']} and {channels} channels.")
    if fields.get("ElementType") not in TYPES:
        raise ValueError(f"{path}: expected an ElementType of {', '.join(TYPES)}, found {fields.get('ElementType')}.")
    _check_place(path, fields, dims)
    names = _data_files(path, fields, shape, content[start:])
    skipped = _whole(path, fields, "HeaderSize") if "HeaderSize" in fields else 0
    compressed, text = _true(fields, "CompressedData"), fields.get("BinaryData", "T")[:1] in "Ff0"
    if skipped < -1 or (compressed and (skipped or text)):
        raise ValueError(
            f"{path}: voxels of HeaderSize {skipped}, compressed {compressed}, text {text} are not supported."
        )
    files = [path.parent / name for name in names] or [path]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{path}: the file of its voxels, '{file.name}', is missing.")
        check_readable(file)
    order = ">" if _true(fields, "BinaryDataByteOrderMSB") or _true(fields, "ElementByteOrderMSB") else "<"
    dtype = np.dtype(order + TYPES[fields["ElementType"]])
    start = skipped if names else start
    return MetaHeader(path, tuple(shape), channels, dtype, tuple(files), start, compressed, text)


def read_voxels(header: MetaHeader) -> np.ndarray:
    """Read the voxels; each file must have exactly as many as the header claims.

    Returns:
        ``[x, y, z]`` or, with several channels, ``[x, y, z, channel]``; an image of two dimensions has one slice.

    Raises:
        ValueError: if a file has more or fewer, or its compressed stream is damaged.
    """
    count = math.prod(header.shape) * header.channels // len(header.files)
    size = count * header.dtype.itemsize
    parts = []
    for file in header.files:
        where = f"{header.path}" if file == header.path else f"{header.path} (with '{file.name}')"
        found = file.stat().st_size - max(header.start, 0)
        if header.compressed:
            content = inflate(file, header.start, size, where)
            found = len(content)
        elif header.text:
            found = len(file.read_bytes()[header.start :].split()) * header.dtype.itemsize
        elif header.start == -1 and found > size:
            found = size
        if found != size:
            raise ValueError(
                f"{where} is damaged or truncated, or its header is wrong: it contains {found} bytes of voxels, the "
                f"header claims {size}."
            )
        if header.compressed:
            parts.append(np.frombuffer(content, header.dtype))
        elif header.text:
            parts.append(np.array(file.read_bytes()[header.start :].split(), np.float64).astype(header.dtype))
        else:
            start = header.start if header.start >= 0 else file.stat().st_size - size
            parts.append(np.fromfile(file, header.dtype, count, offset=start))
    shape = (*header.shape, 1)[:3]
    voxels = np.concatenate(parts) if len(parts) > 1 else parts[0]
    array = voxels.reshape(*shape[::-1], *([header.channels] if header.channels > 1 else []))
    return array.transpose(2, 1, 0, *range(3, array.ndim))


def _fields(path: Path, content: bytes) -> tuple[dict[str, str], int]:
    """The header's fields and its end in the file."""
    fields: dict[str, str] = {}
    start = 0
    for line in content.splitlines(keepends=True):
        start += len(line)
        if not (found := LINE.match(line.rstrip(b"\n"))):
            if line.strip():
                break
            continue
        name, value = (printable(text) for text in found.groups())
        if fields.setdefault(name, value) != value:
            raise ValueError(f"{path}: the header says both {name} = {fields[name]} and {name} = {value}.")
        if name == "ElementDataFile":
            return fields, start
    raise ValueError(f"{path} is not an image of this type, or is damaged: its header has no ElementDataFile.")


def printable(text: bytes) -> str:
    """A field's text, which may stand in a message."""
    decoded = text.decode(errors="replace").replace("\t", " ")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in decoded)


def _data_files(path: Path, fields: dict[str, str], shape: Sequence[int], rest: bytes) -> list[str]:
    """Names of the files of the voxels, one or one per slice; none if the voxels follow the header."""
    value, slices = fields["ElementDataFile"], shape[-1]
    if value in LOCAL:
        return []
    if not value:
        raise ValueError(f"{path}: expected the file of the voxels, found an empty ElementDataFile.")
    if re.match(r"LIST(\s+\d+)?$", value):
        names = [name for line in rest.splitlines() if (name := printable(line).strip())]
        if value not in ("LIST", f"LIST {len(shape) - 1}"):
            raise ValueError(f"{path}: expected a LIST of a file for each slice, found ElementDataFile = {value}.")
    elif "%" in value:
        pattern, *numbers = value.split()
        bounds = [int(n) for n in numbers if re.fullmatch(r"\d+", n)]
        if not re.fullmatch(r"[^%]*%\d*d[^%]*", pattern) or len(bounds) != len(numbers) or len(bounds) > 3:
            raise ValueError(f"{path}: expected a pattern such as slice%03d.raw 1 20 1, found {value}.")
        first, last, step = [*bounds, *(1, slices, 1)[len(bounds) :]]
        if not step or (last - first) // step > slices:
            raise ValueError(f"{path}: expected a file for each of the {slices} slices, found {value}.")
        names = [pattern % number for number in range(first, last + 1, step)]
    else:
        return [value]
    if len(names) != slices:
        raise ValueError(f"{path}: expected a file for each of the {slices} slices, found {len(names)}.")
    return names


def _check_place(path: Path, fields: dict[str, str], dims: int) -> None:
    """Check that spacing, origin and axes are finite and that voxels have a volume."""
    for names, length in ((SIZE, dims), (PLACE, dims), (MATRIX, dims * dims)):
        for name in names:
            if name not in fields:
                continue
            values = np.array(_numbers(path, fields, name, length))
            if names is SIZE and (values <= 0).any():
                raise ValueError(f"{path}: expected spacing above 0, found {name} = {fields[name]}.")
            if names is MATRIX and abs(np.linalg.det(values.reshape(dims, dims))) < 1e-6:
                raise ValueError(f"{path}: expected axes that span the space, found {name} = {fields[name]}.")


def _numbers(path: Path, fields: dict[str, str], name: str, length: int) -> list[float]:
    try:
        values = [float(word) for word in fields[name].split()]
    except (KeyError, ValueError):
        values = []
    if len(values) < length or not np.isfinite(values).all():
        raise ValueError(f"{path}: expected {length} finite numbers as {name}, found {fields.get(name, 'none')}.")
    return values[:length]


def _whole(path: Path, fields: dict[str, str], name: str) -> int:
    if not re.fullmatch(r"-?\d{1,15}", fields.get(name, "")):
        raise ValueError(f"{path}: expected a whole number as {name}, found {fields.get(name, 'none')}.")
    return int(fields[name])


def _true(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "")[:1] in ("T", "t", "1")


def inflate(file: Path, start: int, size: int, where: str) -> bytes:
    """The content of a file's compressed stream, read to the checksum at its end, or to slightly more than ``size``.

    Args:
        file: the file.
        start: offset of the stream, of zlib or gzip, in bytes.
        size: bytes that it should contain.
        where: the beginning of a message.

    Raises:
        ValueError: if the stream is damaged or has no end.
    """
    stream = zlib.decompressobj(wbits=47)  # zlib's or gzip's
    content = bytearray()
    try:
        with open(file, "rb") as source:
            source.seek(start)
            while not stream.eof and len(content) <= size and (block := source.read(1 << 20)):
                while block and not stream.eof and len(content) <= size:
                    content += stream.decompress(block, 1 << 22)
                    block = stream.unconsumed_tail
        if not stream.eof and len(content) <= size:
            content += stream.flush()
    except zlib.error as error:
        raise ValueError(f"{where} is damaged or truncated: its compressed voxels end in {error}.") from None
    if len(content) == size and not stream.eof:
        # only the checksum is left of the stream
        raise ValueError(f"{where} is damaged or truncated: its compressed voxels have no end.")
    return bytes(content)
