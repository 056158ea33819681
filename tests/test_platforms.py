"""What Linux alone has is missed nowhere: a workflow's whole way in a process that lacks it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from bundle.workflows import ROOT

CODE = """
import os, signal, sys

for name in ("resource", "fcntl", "pwd", "grp", "termios", "syslog"):
    sys.modules[name] = None  # importing it fails
os.environ["USERNAME"] = "who"  # which Windows tells in this way
for name in ("sched_getaffinity", "sched_setaffinity", "killpg", "setsid", "getuid", "geteuid", "sysconf"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGXFSZ", "SIGHUP", "SIGALRM"):
    if hasattr(signal, name):
        delattr(signal, name)

import importlib, pathlib, math
from bundle.bench.measurements import peak_memory
from bundle.workflows import execute

assert math.isnan(peak_memory("cpu"))
for folder in ("scripts", "bundle"):
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        apart = {"label", "federated"} & {*path.parts, path.stem}  # these have environments of their own
        if not apart and path.stem not in ("__main__", "verify_worker"):
            importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
data, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
shared = {"dataset_dir": str(data), "device": "cpu", "bundle_root": "."}
more = {"splits": str(data / "splits.json"), "cache_dir": str(out / "cache"), "image_size": 32, "labeled": 2}
more |= {"batch_size": 2, "train#trainer#max_epochs": 1, "train#trainer#epoch_length": 1}
execute("train", ["train.json"], **shared, **more, output_dir=str(out / "run"))
execute("infer", ["inference.json"], **shared, checkpoint=str(out / "run" / "model.pt"), output_dir=str(out / "maps"))
"""


def test_nothing_needs_what_windows_and_macos_lack(phantom: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", CODE, str(phantom), str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert len(list((tmp_path / "maps").rglob("*_seg.nii.gz"))) == 20
