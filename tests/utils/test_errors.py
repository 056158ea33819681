from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser
from monai.transforms import Compose

from bundle.prepare.command import main as prepare
from scripts.data.cache import cached_volumes
from scripts.utils.errors import FaultsError, WriteError, fault_line, plain_errors, plain_line, root_cause
from scripts.utils.files import check_writable, replacing, write_text
from scripts.utils.threads import in_threads
from tests.workflows import workflow

ROOT = Path(__file__).resolve().parents[2]


def caught(work: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as info:  # noqa: PT011 - whatever it is, it is handed on
        work()
    return info.value


def wrapped(error: BaseException) -> BaseException:
    """An error wrapped like MONAI's errors of components."""
    outer = RuntimeError("Failed to evaluate ConfigExpression")
    outer.__cause__ = error
    return outer


def test_a_fault_names_its_file_once() -> None:
    assert fault_line(ValueError("a/x.png: 4 channels"), "a/x.png", "a/y.png") == "a/x.png: 4 channels"
    assert fault_line(ValueError("damaged"), "a/x.png") == "a/x.png: cannot be read: damaged"
    assert fault_line(ValueError("damaged"), "a/x.png", "a/y.png") == "a/x.png / a/y.png: cannot be read: damaged"
    named = fault_line(ValueError("'a/y.png' is\n gone"), "a/x.png", "a/y.png")
    assert named == "a/y.png: cannot be read: 'a/y.png' is gone"


def test_a_full_disk_is_not_an_image_that_cannot_be_read() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert fault_line(full, "a/x.png") == "a/x.png: [Errno 28] No space left on device"
    assert fault_line(WriteError("out/x_seg.png cannot be written"), "a/x.png") == (
        "a/x.png: out/x_seg.png cannot be written"
    )


def test_an_interruption_while_a_component_is_imported_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI imports a config's components by pydoc, which wraps what happens meanwhile."""
    (tmp_path / "interrupted_component.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(tmp_path)
    error = caught(lambda: ConfigParser({"a": {"_target_": "interrupted_component.A"}}).get_parsed_content("a"))
    assert plain_line(error, ROOT) == "interrupted."


def test_a_message_shows_the_first_faults_and_counts_the_others() -> None:
    error = FaultsError([f"fault {i}" for i in range(12)])
    assert len(error.faults) == 12
    assert str(error).splitlines() == [*(f"fault {i}" for i in range(5)), "... and 7 more"]
    assert str(FaultsError(["one"])) == "one"


def test_errors_of_the_system_are_one_line() -> None:
    scripts = ROOT / "scripts"
    assert plain_line(wrapped(PermissionError(errno.EACCES, "Permission denied", "/x")), scripts) == (
        "/x: Permission denied."
    )
    assert plain_line(OSError(errno.ENOSPC, "No space left on device"), scripts) == "No space left on device."
    assert plain_line(wrapped(KeyboardInterrupt()), scripts) == "interrupted."
    assert plain_line(caught(lambda: check_writable("/proc/nothing/here")), scripts).startswith(
        "nothing can be written to '/proc/nothing/here': "
    )
    for unforeseen in (KeyError("x"), OSError(errno.EBADF, "Bad file descriptor"), ValueError("of a library")):
        assert plain_line(wrapped(unforeseen), scripts) is None


def test_tracebacks_of_what_will_be_told_in_one_line_are_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """MONAI's StatsHandler logs them before the program ends."""
    monkeypatch.setattr(sys, "argv", ["site-packages/monai/bundle/__main__.py"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    factory = logging.getLogRecordFactory()
    try:
        plain_errors()
        full, bug = OSError(errno.ENOSPC, "No space left on device"), KeyError("bug")
        for error in (full, bug):
            logging.getLogger("any").error("Exception", exc_info=error)
    finally:
        logging.setLogRecordFactory(factory)
    assert "No space left" not in caplog.text
    assert "KeyError: 'bug'" in caplog.text


def test_a_write_says_what_the_system_said_and_to_which_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"file/a\.csv' cannot be written: (Not a directory|File exists)"):
        write_text(tmp_path / "file" / "a.csv", "x")
    with pytest.raises(WriteError, match="cannot be written: No space left on device"), replacing(tmp_path / "a"):
        raise RuntimeError("a library's words") from OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError, match="source"), replacing(tmp_path / "a"):
        (tmp_path / "source").read_bytes()  # not the written file
    with pytest.raises(RuntimeError, match="other"), replacing(tmp_path / "a"):
        raise RuntimeError("other")


def test_a_full_cache_is_not_blamed_on_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise WriteError("'cache' cannot be written: No space left on device.")

    monkeypatch.setattr("scripts.data.cache._store", full)
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(WriteError, match=r"^'cache' cannot be written"):
        cached_volumes([{"image": str(tmp_path / "a.nii.gz")}], Compose([]), tmp_path / "cache", 2)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder here that takes no file, whoever writes it")
@pytest.mark.parametrize("files", [["train.json"], ["inference.json"], ["train.json", "evaluate.json"]])
def test_outputs_that_cannot_be_written_are_found_out_before_the_work(
    phantom: Path, trained: Callable[..., Path], files: list[str]
) -> None:
    options: dict[str, Any] = {"dataset_dir": str(phantom), "output_dir": "/proc/nothing/here"}
    if files != ["train.json"]:
        options["checkpoint"] = str(trained())
    if files[0] == "train.json":
        options |= {"splits": str(phantom / "splits.json"), "image_size": 48}
    error = caught(lambda: workflow("infer", *files, **options))
    assert str(root_cause(error)).startswith("nothing can be written to '/proc/nothing/here'")
    with pytest.raises(WriteError, match="nothing can be written to '/proc/nothing'"):
        prepare("acdc", str(phantom), "/proc/nothing/list.json", str(phantom / "splits.json"))
    with pytest.raises(WriteError, match="nothing can be written to '/proc/nothing/cache'"):
        cached_volumes([{"image": "nowhere.nii"}], Compose([]), "/proc/nothing/cache", 2)


def test_an_interruption_starts_no_further_work() -> None:
    done = []

    def work(number: int) -> None:
        if number == 0:
            raise KeyboardInterrupt
        time.sleep(0.05)
        done.append(number)

    with pytest.raises(KeyboardInterrupt):
        in_threads(work, range(1000))
    assert len(done) < 100


def train(phantom: Path, folder: Path, *words: str) -> list[str]:
    data = {"dataset_dir": phantom, "splits": phantom / "splits.json", "cache_dir": folder / "cache"}
    small = {"output_dir": folder / "run", "image_size": 32, "batch_size": 2, "labeled": 2, "device": "cpu"}
    options = [f"--{name}={value}" for name, value in {**data, **small}.items()]
    files = "['configs/train.json','configs/methods/supervised.json']"
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, *options, *words]


LIMITED = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
LIMITED += "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)); sys.argv = sys.argv[1:]; "
LIMITED += "runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no limit of a file's size")
def test_a_training_that_cannot_write_ends_in_one_line(phantom: Path, tmp_path: Path) -> None:
    """A limit of the file size simulates a full disk: it needs no root, and the error takes the same path."""
    line = train(phantom, tmp_path, "--train#trainer#max_epochs=1", "--train#trainer#epoch_length=1")
    python, _, _, *words = line
    done = subprocess.run([python, "-c", LIMITED, "monai.bundle", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: '{tmp_path / 'run'}")
    assert "cannot be written: File too large" in done.stderr.splitlines()[-1]
    assert not [path for path in (tmp_path / "run").iterdir() if path.suffix == ".pt"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows interrupts in another way")
def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupted_training_ends_in_one_line(phantom: Path, tmp_path: Path) -> None:
    line = train(phantom, tmp_path, "--train#trainer#max_epochs=9999", "--train#trainer#epoch_length=1")
    log = tmp_path / "log.txt"
    with log.open("w") as stream:
        # A runner in a shell's background ignores SIGINT, and what it starts inherits that.
        process = subprocess.Popen(line, cwd=ROOT, stdout=stream, stderr=stream, preexec_fn=_heed_interrupts)  # noqa: PLW1509
        try:
            for _ in range(6000):
                if (tmp_path / "run" / "checkpoint.pt").is_file() or process.poll() is not None:
                    break
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) in (-signal.SIGINT, 128 + signal.SIGINT)
        finally:
            process.kill()
            process.wait()
    text = log.read_text()
    assert "Traceback" not in text
    assert text.splitlines()[-1] == "error: interrupted."
    assert os.listdir(tmp_path / "run").count("checkpoint.pt") == 1
