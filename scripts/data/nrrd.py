"""NRRD: headers judged, and the voxels' bytes counted, before ITK reads them.

ITK asks for all memory that a header claims, and takes voxels from a gzip stream whose checksum is wrong.
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
LONGEST = 1 << 16  # bytes of a header
_FIELD = re.compile(rb"^([^:#]+): ?(.*?)[ \t\r]*$")


class NrrdHeader(NamedTuple):
    """What a header says of its voxels.

    Attributes:
        size: their bytes, all channels included.
        start: where they begin in the file.
        compressed: whether they are.
    """

    size: int
    start: int
    compressed: bool


def read_nrrd_header(path: Path) -> NrrdHeader:
    """Read the header of an NRRD that holds its own voxels.

    Args:
        path: ``.nrrd`` file.

    Raises:
        FileNotFoundError: where it is missing.
        ValueError: where it is none or may not be read; where its voxels lie in another file, which the cache would not
            see change, or are stored in another way than raw or by gzip.
    """
    check_readable(path)
    with path.open("rb") as stream:
        content = stream.read(LONGEST)
    end = re.search(rb"\r?\n\r?\n", content)
    if not content.startswith(b"NRRD") or end is None:
        raise ValueError(f"{path} is no image of this type, damaged or cut short.")
    found = (_FIELD.match(line) for line in content[: end.start()].split(b"\n"))
    fields = {printable(f[1]).strip().lower(): printable(f[2]) for f in found if f}
    if "data file" in fields or "datafile" in fields:
        raise ValueError(f"{path}: its voxels lie in another file: save it as one NRRD.")
    kind = fields.get("type", "none").lower()
    # as in "unsigned short int" and "uint16_t"
    if (plain := re.sub(r"^(signed |unsigned |u)|( int|_t)$", "", kind)) not in BYTES:
        raise ValueError(f"{path}: expected whole or real numbers as voxels, found type {kind}.")
    sizes = fields.get("sizes", "none")
    if not re.fullmatch(r"[1-9]\d{0,8}( +[1-9]\d{0,8}){1,3}", sizes):
        raise ValueError(f"{path}: expected some voxels in 2 or 3 dimensions, found sizes {sizes}.")
    encoding = fields.get("encoding", "none").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise ValueError(f"{path}: expected voxels that are raw or packed by gzip, found encoding {encoding}.")
    for name in ("line skip", "lineskip", "byte skip", "byteskip"):
        if fields.get(name, "0") != "0":
            raise ValueError(f"{path}: expected voxels right behind the header, found {name} {fields[name]}.")
    return NrrdHeader(math.prod(map(int, sizes.split())) * BYTES[plain], end.end(), encoding != "raw")


def check_nrrd_voxels(path: Path) -> None:
    """Whether a file holds the voxels that its header claims, no fewer and no more, and undamaged where it is packed.

    Raises:
        FileNotFoundError: where it is missing.
        ValueError: where it does not, see also :func:`read_nrrd_header`.
    """
    header = read_nrrd_header(path)
    found = path.stat().st_size - header.start
    if header.compressed:
        found = len(inflate(path, header.start, header.size, str(path)))
    if found != header.size:
        raise ValueError(
            f"{path} is damaged or cut short, or its header is wrong: it holds {found} bytes of voxels, the header "
            f"claims {header.size}."
        )
