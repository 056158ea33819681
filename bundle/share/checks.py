"""Checks of a bundle's files: each raises ValueError for a fault; the first line of its docstring is its name."""

from __future__ import annotations

import re
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from monai.bundle import ConfigParser

from scripts.utils.provenance import file_digest
from scripts.utils.tensors import load_state
from scripts.utils.validation import check, parse_json, read_json, shown

__all__ = ["ARCHIVE_CHECKS", "FILE_CHECKS"]

REQUIRED = (  # the first four by the zoo's rules, the others by ours
    "configs/metadata.json",
    "configs/inference.json",
    "models/model.pt",
    "LICENSE",
    "configs/train.json",
    "configs/evaluate.json",
    "configs/logging.conf",
    "docs/README.md",
    "docs/data_license.txt",
    "models/model.json",
    "models/LICENSE.txt",
    "scripts/__init__.py",
    "large_files.yml",
)
RECORD = ("data", "method", "image_size", "iteration", "seed", "labeled_cases", "code", "sha256", "license")
TEXT = ("", ".conf", ".csv", ".json", ".md", ".py", ".txt", ".yaml", ".yml")  # the first is LICENSE
WEIGHTS = (".pt", ".pth", ".ckpt")
BEGINNINGS = {".png": b"\x89PNG", ".jpg": b"\xff\xd8\xff", ".jpeg": b"\xff\xd8\xff", ".onnx": b"\x08"}
LARGEST, MOST_ENTRIES = 2**30, 10_000  # limit of an archive's unpacked size
LARGE = 25 * 2**20  # the zoo's limit; larger files are listed in large_files.yml
# Patterns of absolute paths, and the files that are searched for each. Weights and images contain arbitrary bytes, so
# they are searched only for folders of users and machines, which are unlikely by chance. Placeholders in sentences,
# such as /path/to, and suffixes of a folder, such as @bundle_root + '/models', are not absolute paths.
ABSOLUTE = (
    (
        rb"(?<![\w.:/\\~}])/(?:home|root|tmp|Users|mnt|media|opt|srv|var|work|workspace|scratch|private)/[\w.-]+",
        (*TEXT, *WEIGHTS, *BEGINNINGS, ".ts"),
    ),
    (rb"(?<![\w.:/\\~}])[A-Za-z]:(?:\\\\?|/)[\w.-]+(?:\\\\?|/)[\w.-]+|\bfile:/+[\w.-]+", TEXT),
    (rb"(?<!\+['\"])(?<!\+ ['\"])(?<=['\"])[%$]?/[\w.-][^'\"\s]*", (".conf", ".json", ".py", ".yaml", ".yml")),
    (rb"(?m)^[ \t\w.-]*[:=-][ \t]*/[\w.-]\S*", (".conf", ".yaml", ".yml")),
)


def archive_entries(archive: Path) -> None:
    """Archive entries stay inside one folder, and none is a link, encrypted, damaged or too large."""
    with zipfile.ZipFile(archive) as file:
        entries = file.infolist()
        if not 0 < len(entries) <= MOST_ENTRIES:
            raise ValueError(f"expected 1 to {MOST_ENTRIES:,} entries, found {len(entries):,}")
        if (size := sum(entry.file_size for entry in entries)) > LARGEST:
            raise ValueError(f"would unpack to {size / 2**20:,.0f} MiB, more than {LARGEST // 2**20:,} MiB")
        for entry in entries:
            path = PurePosixPath(entry.filename)
            if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or PureWindowsPath(path).drive:
                raise ValueError(f"{shown(entry.filename)} points out of the folder")
            if not entry.filename.isprintable():
                raise ValueError(f"{shown(entry.filename)} has unprintable characters")
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                what = "a link" if stat.S_ISLNK(entry.external_attr >> 16) else "no file"
                raise ValueError(f"'{entry.filename}' is {what}")
            if entry.flag_bits & 0x1:
                raise ValueError(f"'{entry.filename}' is encrypted")
        _check_clashes([entry.filename for entry in entries])
        tops = {PurePosixPath(entry.filename).parts[0] for entry in entries}
        if len(tops) != 1 or any("/" not in entry.filename for entry in entries):
            raise ValueError(f"expected one folder, found {sorted(tops)[:5]}")
        if damaged := file.testzip():
            raise ValueError(f"'{damaged}' is damaged: its checksum does not match")


def _check_clashes(names: Sequence[str]) -> None:
    """Names that collide on some system: in case, in Unicode form, or as file and folder."""
    seen: dict[str, str] = {}
    folders: set[str] = set()
    for name in names:
        path = PurePosixPath(unicodedata.normalize("NFC", name).casefold())
        if other := seen.get(str(path)):
            raise ValueError(f"'{name}' is a duplicate" if other == name else f"'{other}' and '{name}' clash")
        seen[str(path)] = name
        folders |= {str(parent) for parent in path.parents}
    if clash := [name for path, name in seen.items() if path in folders and not name.endswith("/")]:
        raise ValueError(f"'{clash[0]}' is a file and a folder")


def archive_digest(archive: Path) -> None:
    """Archive matches its SHA-256 file."""
    beside = archive.with_name(f"{archive.name}.sha256")
    if not beside.is_file():
        raise ValueError(f"no {beside.name} in its folder")
    expected = beside.read_text(encoding="utf-8", errors="replace").split()
    if expected[:1] != [file_digest(archive)]:
        raise ValueError(f"{beside.name} belongs to another file")


def archive_named(archive: Path) -> None:
    """Archive is named by bundle and version."""
    with zipfile.ZipFile(archive) as file:
        folder = file.namelist()[0].partition("/")[0]
        name = f"{folder}/configs/metadata.json"
        if name not in file.namelist():
            raise ValueError(f"no {name} in it")
        metadata = parse_json(file.read(name), name, "metadata")
    check(metadata, "metadata", name)
    expected = f"{folder}_v{metadata['version']}.zip"
    if archive.name != expected:
        raise ValueError(f"expected {expected}")


def required_files(bundle: Path) -> None:
    """Required files exist."""
    if missing := [name for name in REQUIRED if not (bundle / name).is_file()]:
        raise ValueError(f"missing: {', '.join(missing)}")


def plain_files(bundle: Path) -> None:
    """No link, cache or file above 25 MB."""
    for path in bundle.rglob("*"):
        name = path.relative_to(bundle)
        if path.is_symlink():
            raise ValueError(f"{name} is a link")
        if path.name == "__pycache__" or path.suffix == ".pyc" or path.name.startswith("."):
            raise ValueError(f"{name} does not belong in a bundle")
        if not path.is_file() and not path.is_dir():
            raise ValueError(f"{name} is not a file or folder")
        if path.is_file() and path.stat().st_size > LARGE:
            raise ValueError(f"{name} has {path.stat().st_size / 2**20:.0f} MiB: expected an entry in large_files.yml")


def version_in_changelog(bundle: Path) -> None:
    """Version is in the changelog."""
    metadata = _metadata(bundle)
    if metadata["version"] not in metadata.get("changelog", {}):
        raise ValueError(f"no changelog of version {metadata['version']}")


def exact_versions(bundle: Path) -> None:
    """Versions of the packages are exact."""
    metadata = _metadata(bundle)
    versions = {key: metadata[f"{key}_version"] for key in ("monai", "pytorch", "numpy")}
    versions |= {**metadata["required_packages_version"], **metadata.get("dicom_packages_version", {})}
    loose = [f"{name} {version}" for name, version in versions.items() if not re.fullmatch(r"\d+(\.\w+)+", version)]
    if loose:
        raise ValueError(f"not exact: {', '.join(loose)}")


def described(bundle: Path) -> None:
    """Metadata has intended use, data licence, references and training data."""
    metadata = _metadata(bundle)
    keys = ("intended_use", "data_license", "data_source", "references", "name")
    if missing := [key for key in keys if not metadata.get(key)]:
        raise ValueError(f"missing: {', '.join(missing)}")


def no_absolute_path(bundle: Path) -> None:
    """No file contains an absolute path."""
    for path in _files(bundle):
        content = path.read_bytes()
        for pattern, suffixes in ABSOLUTE:
            if path.suffix in suffixes and (found := re.search(pattern, content)):
                raise ValueError(f"{path.relative_to(bundle)}: {found.group().decode(errors='replace').strip()}")


def links_lead_somewhere(bundle: Path) -> None:
    """Links in the documents point to existing files and headings."""
    for page in sorted(bundle.rglob("*.md")):
        for link, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve() if link else page.resolve()
            if not target.exists() or bundle.resolve() not in target.parents:
                raise ValueError(f"{page.relative_to(bundle)}: {link}")
            if heading and heading not in anchors(target):
                raise ValueError(f"{page.relative_to(bundle)}: {link}#{heading}")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings: their words in lower case with hyphens, without punctuation."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def no_pickled_code(bundle: Path) -> None:
    """Files are text, images or tensors without pickled code."""
    listed = [entry["path"] for entry in _large_files(bundle)]
    for path in _files(bundle):
        name = path.relative_to(bundle).as_posix()
        if path.suffix in WEIGHTS:
            try:
                load_state(path)
            except ValueError as error:
                raise ValueError(f"{name} contains more than finite tensors, or is damaged: {error}") from None
        elif path.suffix in BEGINNINGS:
            if not path.read_bytes().startswith(BEGINNINGS[path.suffix]):
                raise ValueError(f"{name} is not a {path.suffix} file")
        elif path.suffix == ".ts":
            if name not in listed:
                raise ValueError(f"{name} contains TorchScript, but large_files.yml does not list it")
            if not _is_torchscript(path):
                raise ValueError(f"{name} is not a TorchScript file")
        elif path.suffix not in TEXT or (not path.suffix and path.name != "LICENSE") or not _is_text(path):
            raise ValueError(f"{name} is not a file of a bundle")


def weights_have_a_record(bundle: Path) -> None:
    """Weights have a matching record of their provenance."""
    record = read_json(bundle / "models" / "model.json", "record")
    if missing := [key for key in RECORD if key not in record]:
        raise ValueError(f"models/model.json lacks {', '.join(missing)}")
    if record["sha256"] != file_digest(bundle / "models" / "model.pt"):
        raise ValueError("models/model.json belongs to other weights")


def label_server_takes_the_weights(bundle: Path) -> None:
    """MONAI Label, which uses the shortest name, uses model.pt."""
    names = sorted((path.name for path in (bundle / "models").glob("*.pt")), key=len)
    if names[0] != "model.pt":
        raise ValueError(f"it uses {names[0]}")


def training_config(bundle: Path) -> None:
    """Training config describes its data."""
    read_json(bundle / "configs" / "train.json", "training")


def large_files(bundle: Path) -> None:
    """Files in large_files.yml match their digests."""
    for entry in _large_files(bundle):
        path = (bundle / entry["path"]).resolve()
        if bundle.resolve() not in path.parents:
            raise ValueError(f"{entry['path']} points out of the bundle")
        if entry.get("hash_type") != "sha256" or not entry.get("hash_val"):
            raise ValueError(f"{entry['path']} has no SHA-256")
        if path.is_file() and entry["hash_val"] != file_digest(path):
            raise ValueError(f"{entry['path']} has another SHA-256")


def _metadata(bundle: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = read_json(bundle / "configs" / "metadata.json", "metadata")
    return metadata


def _large_files(bundle: Path) -> list[dict[str, str]]:
    content = ConfigParser.load_config_file(str(bundle / "large_files.yml"))
    check(content, "large files", "large_files.yml")
    entries: list[dict[str, str]] = content["large_files"]
    return entries


def _files(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def _is_text(path: Path) -> bool:
    try:
        return "\0" not in path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False


def _is_torchscript(path: Path) -> bool:
    """Whether an archive is TorchScript, which PyTorch reads by its own interpreter, not by pickle."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        names = [PurePosixPath(name).parts[1:2] for name in file.namelist()]
    return ("constants.pkl",) in names and ("code",) in names


ARCHIVE_CHECKS: tuple[Callable[[Path], None], ...] = (archive_entries, archive_digest, archive_named)
FILE_CHECKS: tuple[Callable[[Path], None], ...] = (
    required_files,
    plain_files,
    version_in_changelog,
    exact_versions,
    described,
    no_absolute_path,
    links_lead_somewhere,
    no_pickled_code,
    weights_have_a_record,
    label_server_takes_the_weights,
    large_files,
    training_config,
)
