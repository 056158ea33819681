"""A real archive for tests: Debian's Orthanc with its DICOMweb service."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

HOST = "127.0.0.1"
PATIENCE = 60.0  # seconds, of the start and of the end


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


@contextmanager
def running_orthanc(folder: Path, users: Mapping[str, str] | None = None) -> Iterator[str]:
    """An empty archive that this machine alone reaches; its address. Without the packages the test is skipped.

    Args:
        folder: gets the archive's files.
        users: passwords by name; None: no sign-in.
    """
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    plugins = [str(path) for path in Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so*")]
    if not program or not plugins:
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
    port = free_port()
    settings = {
        "StorageDirectory": str(folder / "archive"),
        "IndexDirectory": str(folder / "archive"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": users is not None,
        "RegisteredUsers": dict(users or {}),
        "Plugins": plugins[:1],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        end = time.monotonic() + PATIENCE
        while not _answers(port):
            said = (folder / "orthanc.log").read_text()[-2000:]
            assert process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.1)
        yield f"http://{HOST}:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
