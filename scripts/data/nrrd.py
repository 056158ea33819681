"""Checks of an NRRD before ITK reads it: its header and the number of its voxels' bytes.

ITK allocates as much memory as a header claims, and accepts a gzip stream with a wrong checksum.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

from scripts.data.metaimage import inflate, printable
from scripts.utils.files import check_readable

__all__ = ["NrrdHeader", "check_nrrd_voxels", "read_nrrd_header"]

BYTES = {"char": 1, "int8": 1, "short": 2, "int16": 2, "int": 4, "int32": 4, "float": 4}
BYTES |= {"longlong": 8, "long long": 8, "int64": 8, "double": 8}
LONGEST = 1 << 16  # of a header, in bytes
_FIELD = re.compile(rb"^([^:#]+): ?(.*?)[ \t\r]*$")


class NrrdHeader(NamedTuple):
    """Storage of an image's voxels according to its header.

    Attributes:
        size: bytes of all voxels and channels, uncompressed.
        start: offset of the voxels in the file, in bytes.
        compressed: whether they are a gzip stream.
    """

    size: int
    start: int
    compressed: bool


def read_nrrd_header(path: Path) -> NrrdHeader:
    """Read the header of an NRRD that holds its own voxels.

    Args:
        path: ``.nrrd`` file.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not an NRRD or cannot be opened, if its voxels are neither raw nor a gzip stream, or if
            they are in another file, whose changes the cache would not notice.
    """
    check_readable(path)
    with path.open("rb") as stream:
        content = stream.read(LONGEST)
    end = re.search(rb"\r?\n\r?\n", content)
    if not content.startswith(b"NRRD") or end is None:
        raise ValueError(f"{path} is not an image of this type, or is damaged.")
    found = (_FIELD.match(line) for line in content[: end.start()].split(b"\n"))
    fields = {printable(f[1]).strip().lower(): printable(f[2]) for f in found if f}
    if "data file" in fields or "datafile" in fields:
        raise ValueError(f"{path}: its voxels are in another file: save it as a single NRRD.")
    kind = fields.get("type", "none").lower()
    # as in "unsigned short int" and "uint16_t"
    if (plain := re.sub(r"^(signed |unsigned |u)|( int|_t)$", "", kind)) not in BYTES:
        raise ValueError(f"{path}: expected whole or real numbers as voxels, found type {kind}.")
    sizes = fields.get("sizes", "none")
    if not re.fullmatch(r"[1-9]\d{0,8}( +[1-9]\d{0,8}){1,3}", sizes):
        raise ValueError(f"{path}: expected some voxels in 2 or 3 dimensions, found sizes {sizes}.")
    encoding = fields.get("encoding", "none").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise ValueError(f"{path}: expected voxels that are raw or compressed by gzip, found encoding {encoding}.")
    for name in ("line skip", "lineskip", "byte skip", "byteskip"):
        if fields.get(name, "0") != "0":
            raise ValueError(f"{path}: expected voxels directly after the header, found {name} {fields[name]}.")
    return NrrdHeader(math.prod(map(int, sizes.split())) * BYTES[plain], end.end(), encoding != "raw")


def check_nrrd_voxels(path: Path) -> None:
    """Check that a file has exactly as many voxels as its header claims, and that a compressed stream is undamaged.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if the voxels are too few, too many or damaged; see also :func:`read_nrrd_header`.
    """
    header = read_nrrd_header(path)
    found = path.stat().st_size - header.start
    if header.compressed:
        found = len(inflate(path, header.start, header.size, str(path)))
    if found != header.size:
        raise ValueError(
            f"{path} is damaged or truncated, or its header is wrong: it contains {found} bytes of voxels, the "
            f"header claims {header.size}."
        )
