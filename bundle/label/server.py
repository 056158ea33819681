"""A MONAI Label server on this machine, and the HTTP requests of its clients (3D Slicer, OHIF)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import requests
import torch
from torch import nn

from bundle.share.pack import main as pack
from scripts.handlers.checkpoints import plain_options
from scripts.networks import UNet
from scripts.utils.provenance import write_record

__all__ = ["LabelServer", "free_port", "place_bundle"]

HOST = "127.0.0.1"
TIMEOUT = 300.0  # seconds, of one request
PATIENCE = 1800.0  # seconds, of a training
# 3D Slicer's format for results, independent of the study's.
ANSWER = {"device": "cpu", "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}


def place_bundle(target: Path, changes: Mapping[str, Any], network: nn.Module | None = None) -> Path:
    """Pack the bundle into the ``monaibundle`` app's folder, ``APP/model/NAME``.

    Args:
        target: the new folder; its name is the model's.
        changes: ids of ``train.json`` and their values; ``image_size`` also changes inference.
        network: the network whose weights are packed; default: an untrained one.

    Returns:
        the folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".") as folder:
        weights = Path(folder, "model.pt")
        network = network or UNet()
        torch.save(network.state_dict(), weights)
        origin: dict[str, Any] = {
            "data": "acdc",
            "method": "none",
            "seed": 0,
            "iteration": 0,
            "labeled_cases": 0,
            "synthetic": True,
        }
        settings = {f"network {name}": value for name, value in plain_options(network).items()}
        origin |= {"network": type(network).__name__, "settings": settings}
        write_record(weights, {**origin, "image_size": changes["image_size"]})
        with redirect_stdout(None):
            pack("acdc", str(weights), folder)
        os.replace(Path(folder, "semsim_acdc_segmentation"), target)
    path = target / "configs" / "train.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **changes}, indent=4) + "\n", encoding="utf-8")
    return target


def free_port() -> int:
    """An unused port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class LabelServer:
    """Starts a server with the stock ``monaibundle`` app on loopback; use it in a ``with`` statement.

    The server runs in this Python environment without network access: models come from the app's folder.

    Args:
        folder: folder for the app (``app/``) and the server's output (``server.log``).
        studies: the datastore: a folder, or the address of a DICOMweb service.
        models: names of the bundles in ``app/model/``.
        conf: further ``--conf`` pairs.
        environment: settings of the server, such as ``MONAI_LABEL_DATASTORE_FILE_EXT``.

    Raises:
        RuntimeError: if the server does not start.
    """

    def __init__(
        self,
        folder: Path,
        studies: Path | str,
        models: Sequence[str],
        conf: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.app = app_folder(folder)
        self.log = folder / "server.log"
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.session = requests.Session()
        self.session.trust_env = False  # a proxy of the environment cannot reach this machine's loopback interface
        settings = {"models": ",".join(models), "zoo_source": "local", "sam2": "false", **(conf or {})}
        self.command = [sys.executable, "-m", "monailabel.main", "start_server"]
        self.command += ["--app", str(self.app), "--studies", str(studies), "--host", HOST, "--port", str(self.port)]
        self.command += [word for name, value in settings.items() for word in ("--conf", name, value)]
        # The training process inherits PYTHONPATH and must import the bundle from the app, not from this repository.
        self.environment = {**os.environ, "PYTHONPATH": "", **(environment or {})}

    def __enter__(self) -> LabelServer:
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.app, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and the trainings that it started."""
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def crash(self) -> None:
        """End the server only, like a crash."""
        self.process.kill()
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and its trainings."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _wait(self) -> None:
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end and self.process.poll() is None:
            if self._answers():
                return
            time.sleep(0.5)
        raise RuntimeError(f"The server did not start: see {self.log}.\n" + self.log.read_text()[-2000:])

    def _answers(self) -> bool:
        try:
            return self.session.get(f"{self.url}/info/", timeout=TIMEOUT).ok
        except requests.ConnectionError:
            return False

    def info(self) -> dict[str, Any]:
        """The server's models, labels, trainers and studies."""
        return self._json(self.session.get(f"{self.url}/info/", timeout=TIMEOUT))

    def datastore(self) -> dict[str, Any]:
        """The server's studies with their labels."""
        return self._json(self.session.get(f"{self.url}/datastore/?output=all", timeout=TIMEOUT))

    def infer(self, model: str, image: str, target: Path, **params: Any) -> Path:
        """Segment a study by the request of 3D Slicer, with all of the server's options.

        Args:
            model: name of the model.
            image: id of the study.
            target: the label map's file, NRRD.
            **params: options with other values, such as ``model_filename``.
        """
        options = _first_of(self.info()["models"][model]["config"])
        answer = self.session.post(
            f"{self.url}/infer/{model}?image={image}&output=image",
            data={"params": json.dumps({**options, **ANSWER, **params})},
            timeout=TIMEOUT,
        )
        self._check(answer)
        target.write_bytes(answer.content)
        return target

    def add_image(self, image: str, file: Path) -> None:
        """Add a study."""
        with file.open("rb") as stream:
            files = {"file": (file.name, stream)}
            self._check(self.session.put(f"{self.url}/datastore/image?image={image}", files=files, timeout=TIMEOUT))

    def remove_image(self, image: str) -> None:
        """Remove a study and its labels."""
        self._check(self.session.delete(f"{self.url}/datastore/image?id={image}", timeout=TIMEOUT))

    def save_label(self, image: str, label: Path, tag: str = "final", segments: Sequence[str] = ()) -> None:
        """Submit a study's label with the names of its segments, like 3D Slicer."""
        info = {"label_info": [{"name": name, "idx": number} for number, name in enumerate(segments, 1)]}
        with label.open("rb") as stream:
            answer = self.session.put(
                f"{self.url}/datastore/label?image={image}&tag={tag}",
                files={"label": (label.name, stream)},
                data={"params": json.dumps(info)} if segments else None,
                timeout=TIMEOUT,
            )
        self._check(answer)

    def train(self, model: str, **params: Any) -> tuple[str, str]:
        """Train a model and wait until it ends, see :meth:`start_training`.

        Returns:
            status (``DONE`` or ``ERROR``) and the training's output.
        """
        return self._task("train", model, self._training_options(model, params))

    def start_training(self, model: str, **params: Any) -> None:
        """Start the training of a model.

        The request is 3D Slicer's: all of the server's options, the first entry of each list.

        Args:
            model: name of the model.
            **params: options with other values, such as ``minutes`` and ``val_split``.
        """
        options = self._training_options(model, params)
        self._check(self.session.post(f"{self.url}/train/{model}", json=options, timeout=TIMEOUT))

    def stop_training(self) -> None:
        """End the running training."""
        self._check(self.session.delete(f"{self.url}/train/", timeout=TIMEOUT))

    def training(self) -> dict[str, Any]:
        """The status and the last output of the latest training."""
        return self._json(self.session.get(f"{self.url}/train/", timeout=TIMEOUT))

    def segment_unlabeled(self, model: str) -> str:
        """Fetch and segment all studies without a final label and wait; returns the status."""
        params = {"device": "cpu", "multi_gpu": False, "save_label": True, "label_tag": "original", "max_workers": 1}
        return self._task("batch/infer", f"{model}?images=unlabeled", params)[0]

    def _training_options(self, model: str, params: Mapping[str, Any]) -> dict[str, Any]:
        return {**_first_of(self.info()["trainers"][model]["config"]), "device": "cpu", **params}

    def score(self, method: str, **params: Any) -> tuple[str, str]:
        """Score the studies without a label for active learning and wait; see :meth:`train`."""
        return self._task("scoring", method, params)

    def _task(self, kind: str, name: str, params: Mapping[str, Any]) -> tuple[str, str]:
        begin = self.log.stat().st_size
        self._check(self.session.post(f"{self.url}/{kind}/{name}", json=dict(params), timeout=TIMEOUT))
        end = time.monotonic() + PATIENCE
        status = "SUBMITTED"
        while status in ("SUBMITTED", "RUNNING"):
            if time.monotonic() > end:
                raise RuntimeError(f"{kind} of {name} did not end: see {self.log}.")
            time.sleep(0.5)
            place = kind if kind.startswith("batch") else f"{kind}/"
            status = self._json(self.session.get(f"{self.url}/{place}", timeout=TIMEOUT))["status"]
        with self.log.open("rb") as stream:
            stream.seek(begin)
            return status, stream.read().decode("utf-8", "replace")

    def _json(self, answer: requests.Response) -> dict[str, Any]:
        self._check(answer)
        content: dict[str, Any] = answer.json()
        return content

    @staticmethod
    def _check(answer: requests.Response) -> None:
        if not answer.ok:
            raise RuntimeError(f"{answer.request.method} {answer.url}: {answer.status_code} {answer.text[:500]}")


def _first_of(offered: Mapping[str, Any]) -> dict[str, Any]:
    """The server's options as a viewer sends them, with the first entry of each list."""
    return {key: value[0] if isinstance(value, list) else value for key, value in offered.items()}


def app_folder(folder: Path) -> Path:
    """MONAI Label's own ``monaibundle`` app, copied to ``folder/app`` once."""
    app = folder / "app"
    if not (app / "main.py").is_file():
        source = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
        shutil.copytree(source, app, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return app
