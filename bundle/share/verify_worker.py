"""Checks that ``verify`` runs on an unpacked bundle, in a process without this repository on its path.

The code is passed to ``python -c`` in the bundle's folder with three arguments: the bundle's folder, a copy of the
metadata's schema (empty: download it), and JSON with the data's config values, ``{"train": {...}, "infer": {...}}``. It
prints one line per check: ``RESULT ["name", "fault"]``. A check raises for a fault; its docstring is its name.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigWorkflow, ckpt_export, create_workflow, load, verify_metadata, verify_net_in_out


class Bundle(NamedTuple):
    """The checks' arguments: the bundle's folder, the schema's copy and the data's config values."""

    root: Path
    schema: str
    data: dict[str, dict[str, Any]]

    def config(self, name: str) -> str:
        """Path of a config."""
        return str(self.root / "configs" / name)

    @property
    def weights(self) -> Path:
        """Path of the weights."""
        return self.root / "models" / "model.pt"


@contextmanager
def elsewhere(bundle: Bundle) -> Iterator[Path]:
    """Another working folder, as for a program that imports the bundle: the bundle is not on Python's path."""
    here, path = os.getcwd(), list(sys.path)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.path[:] = [entry for entry in sys.path if entry and Path(entry) != bundle.root]
        try:
            yield Path(folder)
        finally:
            os.chdir(here)
            sys.path[:] = path


def loaded(bundle: Bundle) -> torch.nn.Module:
    """The network with its weights, from MONAI's ``load``."""
    options: dict[str, Any] = {"args_file": {"bundle_root": str(bundle.root)}, "device": "cpu"}
    network = load(bundle.root.name, bundle_dir=bundle.root.parent, workflow_type="inference", **options)
    assert isinstance(network, torch.nn.Module)
    return network.eval()


def workflow(bundle: Bundle, kind: str, *names: str) -> ConfigWorkflow:
    """A workflow of the bundle on the data, initialised."""
    flow = ConfigWorkflow(
        config_file=[bundle.config(name) for name in names],
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(bundle.root),
        **bundle.data["infer" if names == ("inference.json",) else "train"],
    )
    flow.initialize()
    return flow


def loads(bundle: Bundle) -> None:
    """Another program loads the network."""
    with elsewhere(bundle):
        network = loaded(bundle)
    expected = torch.load(bundle.weights, map_location="cpu", weights_only=True)
    if not all(torch.equal(value, expected[key]) for key, value in network.state_dict().items()):
        raise ValueError("the network of load has other weights than models/model.pt")


def runs(bundle: Bundle) -> None:
    """Another program trains, evaluates and infers."""
    steps = {"train#trainer#max_epochs": 1, "train#trainer#epoch_length": 2, "batch_size": 2}
    with elsewhere(bundle) as folder:
        for kind, names, options, result in (
            ("train", ["train.json"], {**bundle.data["train"], **steps}, "model.pt"),
            ("infer", ["train.json", "evaluate.json"], bundle.data["train"], "summary.csv"),
            ("infer", ["inference.json"], bundle.data["infer"], "**/*_seg.*"),
        ):
            output = folder / names[-1]
            flow = create_workflow(
                config_file=[bundle.config(name) for name in names],
                workflow_type=kind,
                logging_file=False,
                bundle_root=str(bundle.root),
                output_dir=str(output),
                **options,
            )
            flow.run()
            flow.finalize()
            if not list(output.glob(result)):
                raise ValueError(f"{names[-1]} wrote no {result}")


def schema_holds(bundle: Bundle) -> None:
    """Metadata follows its schema."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "schema.json"
        if bundle.schema:
            shutil.copyfile(bundle.schema, copy)
        try:
            verify_metadata(meta_file=bundle.config("metadata.json"), filepath=str(copy))
        except OSError as error:
            raise ValueError(f"the schema cannot be downloaded ({error}): give a local copy by --schema") from None


def properties(bundle: Bundle) -> None:
    """Workflows have MONAI's properties."""
    for kind, *names in (
        ("train", "train.json"),
        ("infer", "inference.json"),
        ("infer", "train.json", "evaluate.json"),
    ):
        if faults := workflow(bundle, kind, *names).check_properties():
            raise ValueError(f"{names[-1]}: {', '.join(faults)}")


def weights_fit(bundle: Bundle) -> None:
    """Weights match the network exactly."""
    state = torch.load(bundle.weights, map_location="cpu", weights_only=True)
    expected = workflow(bundle, "infer", "inference.json").network_def.state_dict()
    wrong = sorted(expected.keys() ^ state.keys())
    wrong += [k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape]
    wrong += [k for k in expected.keys() & state.keys() if expected[k].dtype != state[k].dtype]
    if wrong:
        raise ValueError(f"{len(wrong)} tensors differ, the first is {wrong[0]}")


def network_fits(bundle: Bundle) -> None:
    """Network's input and output match the metadata."""
    for n in (1, 4):
        verify_net_in_out(
            "network_def", bundle.config("metadata.json"), bundle.config("inference.json"), device="cpu", n=n
        )


def torchscript(bundle: Bundle) -> None:
    """TorchScript export gives the network's output."""
    network, metadata = loaded(bundle), bundle.config("metadata.json")
    content = json.loads(Path(metadata).read_text(encoding="utf-8"))
    channels = content["network_data_format"]["inputs"]["image"]["num_channels"]
    scripted = type(network).__name__ == "UNet"  # other networks have parts that can only be traced, for one size
    options: dict[str, Any] = {} if scripted else {"use_trace": True, "input_shape": [1, channels, 64, 48]}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "model.ts")
        ckpt_export("network_def", file, str(bundle.weights), metadata, bundle.config("inference.json"), **options)
        exported = torch.jit.load(file)
    with torch.no_grad():
        for batch in (1, 3) if scripted else (1,):
            image = torch.rand(batch, channels, 64, 48)
            torch.testing.assert_close(exported(image), network(image))


CHECKS: tuple[Callable[[Bundle], None], ...] = (
    loads,
    runs,
    schema_holds,
    properties,
    weights_fit,
    network_fits,
    torchscript,
)
"""All checks, in order."""


def run(bundle: Bundle) -> None:
    """Run the checks, one result each."""
    for check in CHECKS:
        fault = ""
        try:
            check(bundle)
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            fault = " ".join(str(cause).split())[:300] or type(cause).__name__
        print(f"RESULT {json.dumps([(check.__doc__ or '').rstrip('.'), fault])}", flush=True)


if __name__ == "__main__":
    run(Bundle(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))
