"""``python -m bundle send``: to a real Orthanc over loopback, and to failing archives."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydicom import dcmread

from bundle.__main__ import main as bundle
from bundle.dicom import sending
from tests.dicom_study import Study, write
from tests.orthanc import free_port, running_orthanc


def send(*arguments: str) -> None:
    bundle(["send", *arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The command's error line."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        send(*arguments)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(Study(phases=1).cine()[:1], tmp_path / "in", lambda _: "seg.dcm")[0]


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[str]:
    with running_orthanc(tmp_path, {"doctor": "secret"}) as address:
        yield f"{address}/dicom-web"


def test_an_archive_takes_it_once_and_returns_it_unchanged(
    orthanc: str, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "refuses it: answer 401" in refused(capsys, str(file), "--url", orthanc)
    monkeypatch.setenv("DICOMWEB_USER", "doctor")
    monkeypatch.setenv("DICOMWEB_PASSWORD", "secret")
    send(str(file), "--url", orthanc)
    send(str(file), "--url", orthanc)
    assert capsys.readouterr().out == f"{file}: stored.\n{file}: already in the archive.\n"
    client = sending._client(orthanc, {"DICOMWEB_USER": "doctor", "DICOMWEB_PASSWORD": "secret"})
    sent = dcmread(file)
    back = client.retrieve_instance(sent.StudyInstanceUID, sent.SeriesInstanceUID, sent.SOPInstanceUID)
    assert back == sent


class Archive(BaseHTTPRequestHandler):
    """A DICOMweb service with configurable failures."""

    stored: list[bytes]
    answers: list[Callable[[Archive, bytes], None]]
    headers_seen: list[str | None]

    def do_GET(self) -> None:
        self.headers_seen.append(self.headers.get("Authorization"))
        found = [{"00080018": {"vr": "UI", "Value": ["1"]}}] if self.stored else []
        self.reply(200 if found else 204, json.dumps(found).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answers.pop(0)(self, body)

    def reply(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body) if status != 204 else 0))
        self.end_headers()
        if status != 204:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def takes(archive: Archive, body: bytes) -> None:
    archive.stored.append(body)
    archive.reply(200, b"{}")


def takes_but_does_not_say(archive: Archive, body: bytes) -> None:
    archive.stored.append(body)
    archive.reply(504)


def busy(archive: Archive, _: bytes) -> None:
    archive.reply(503)


def refuses(archive: Archive, _: bytes) -> None:
    archive.reply(409, b"{}")


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[Archive], str]]:
    monkeypatch.setattr(sending.time, "sleep", lambda _: None)
    handler = type("Handler", (Archive,), {"stored": [], "answers": [], "headers_seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.parametrize(
    ("answers", "stored"),
    [([takes], 1), ([busy, busy, takes], 1), ([takes_but_does_not_say], 1)],
)
def test_a_failed_send_is_retried_and_never_duplicated(
    archive: tuple[type[Archive], str], file: Path, answers: list, stored: int
) -> None:
    handler, url = archive
    handler.answers.extend(answers)
    send(str(file), "--url", url)
    assert len(handler.stored) == stored
    assert handler.answers == []


@pytest.mark.parametrize(
    ("answers", "message"),
    [([refuses], "answer 409"), ([busy] * 4, "answer 503")],
)
def test_a_refusal_by_the_archive_is_one_line(
    archive: tuple[type[Archive], str], file: Path, answers: list, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    handler, url = archive
    handler.answers.extend(answers)
    assert f"seg.dcm: {url} refuses it: {message}" in refused(capsys, str(file), "--url", url)
    assert handler.stored == []
    assert handler.answers == []


def test_a_token_is_sent_as_the_environment_has_it(
    archive: tuple[type[Archive], str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = archive
    handler.answers.append(takes)
    monkeypatch.setenv("DICOMWEB_TOKEN", "abc")
    send(str(file), "--url", url)
    assert set(handler.headers_seen) == {"Bearer abc"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("archive", "url: expected http://HOST/PATH or https://HOST/PATH, found 'archive'"),
        ("http://doctor:secret@127.0.0.1/", "url: expected no name and password in it"),
        ("http://archive.example/dicom-web", "is not encrypted and would expose the credentials: expected https"),
    ],
)
def test_a_wrong_url_is_one_line(
    file: Path, url: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DICOMWEB_TOKEN", "abc")
    line = refused(capsys, str(file), "--url", url)
    assert message in line
    assert "secret" not in line


def test_no_archive_and_no_file_are_one_line(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sending.time, "sleep", lambda _: None)
    nobody = f"http://127.0.0.1:{free_port()}"
    assert "refuses it: no answer (ConnectionError)" in refused(capsys, str(file), "--url", nobody)
    assert "gone.dcm: no such file" in refused(capsys, str(tmp_path / "gone.dcm"), "--url", nobody)
    (tmp_path / "text.dcm").write_text("notes")
    line = refused(capsys, str(tmp_path / "text.dcm"), "--url", nobody)
    assert "text.dcm is not a DICOM file, or is damaged" in line
