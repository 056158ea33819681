"""The bundle's workflows for the tests."""

from __future__ import annotations

from typing import Any

from monai.bundle import ConfigWorkflow

from bundle.workflows import CONFIGS, ROOT

QUIET = ("train#handlers#3", "validate#handlers#0")
"""The handlers of ``train.json`` that print or log."""


def workflow(kind: str, *files: str, **overrides: Any) -> ConfigWorkflow:
    """An initialised workflow on the CPU, of files below ``configs``."""
    quiet = {f"{handler}#_disabled_": True for handler in QUIET} if "train.json" in files else {}
    flow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in files],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        **{"bundle_root": str(ROOT), "device": "$torch.device('cpu')", **quiet, **overrides},
    )
    flow.initialize()
    return flow
