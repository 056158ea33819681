"""What ``verify`` runs beside an unpacked bundle, in a process that sees the bundle and not this repository.

It is handed to ``python -c`` in the bundle's folder with three arguments: the bundle's folder, a copy of the metadata's
schema (empty: download it), and JSON with the config values that name the data, ``{"train": {...}, "infer": {...}}``.
It prints one line per check: ``RESULT ["name", "what is wrong"]``.
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
from typing import Any

import torch
from monai.bundle import ConfigWorkflow, ckpt_export, create_workflow, load, verify_metadata, verify_net_in_out


def checks(bundle: Path, schema: str, data: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks by name, in the order in which they run."""
    configs, weights = bundle / "configs", bundle / "models" / "model.pt"
    metadata = json.loads((configs / "metadata.json").read_text(encoding="utf-8"))
    inference = str(configs / "inference.json")

    def loaded() -> torch.nn.Module:
        options: dict[str, Any] = {"args_file": {"bundle_root": str(bundle)}, "device": "cpu"}
        network = load(bundle.name, bundle_dir=bundle.parent, workflow_type="inference", **options)
        assert isinstance(network, torch.nn.Module)
        return network.eval()

    @contextmanager
    def elsewhere() -> Iterator[Path]:
        """Another folder, as a program that imports the bundle works in: the bundle is not on Python's path there."""
        here, path = os.getcwd(), list(sys.path)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            sys.path[:] = [entry for entry in sys.path if entry and Path(entry) != bundle]
            try:
                yield Path(folder)
            finally:
                os.chdir(here)
                sys.path[:] = path

    def loads() -> None:
        with elsewhere():
            network = loaded()
        expected = torch.load(weights, map_location="cpu", weights_only=True)
        if not all(torch.equal(value, expected[key]) for key, value in network.state_dict().items()):
            raise ValueError("the network that load returns has other weights than models/model.pt")

    def runs() -> None:
        steps = {"train#trainer#max_epochs": 1, "train#trainer#epoch_length": 2, "batch_size": 2}
        with elsewhere() as folder:
            for kind, names, options, result in (
                ("train", ["train.json"], {**data["train"], **steps}, "model.pt"),
                ("infer", ["train.json", "evaluate.json"], data["train"], "summary.csv"),
                ("infer", ["inference.json"], data["infer"], "**/*_seg.*"),
            ):
                output = folder / names[-1]
                flow = create_workflow(
                    config_file=[str(configs / name) for name in names],
                    workflow_type=kind,
                    logging_file=False,
                    bundle_root=str(bundle),
                    output_dir=str(output),
                    **options,
                )
                flow.run()
                flow.finalize()
                if not list(output.glob(result)):
                    raise ValueError(f"{names[-1]} wrote no {result}")

    def schema_holds() -> None:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "schema.json"
            if schema:
                shutil.copyfile(schema, copy)
            verify_metadata(meta_file=str(configs / "metadata.json"), filepath=str(copy))

    def network_fits() -> None:
        for n in (1, 4):
            verify_net_in_out("network_def", str(configs / "metadata.json"), inference, device="cpu", n=n)

    def workflow(kind: str, *names: str) -> ConfigWorkflow:
        return ConfigWorkflow(
            config_file=[str(configs / name) for name in names],
            logging_file=False,
            workflow_type=kind,
            bundle_root=str(bundle),
            **data["infer" if names == ("inference.json",) else "train"],
        )

    def properties() -> None:
        for kind, *names in (
            ("train", "train.json"),
            ("infer", "inference.json"),
            ("infer", "train.json", "evaluate.json"),
        ):
            flow = workflow(kind, *names)
            flow.initialize()
            if faults := flow.check_properties():
                raise ValueError(f"{names[-1]}: {', '.join(faults)}")

    def weights_fit() -> None:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        flow = workflow("infer", "inference.json")
        flow.initialize()
        expected = flow.network_def.state_dict()
        wrong = sorted(expected.keys() ^ state.keys())
        wrong += [k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape]
        wrong += [k for k in expected.keys() & state.keys() if expected[k].dtype != state[k].dtype]
        if wrong:
            raise ValueError(f"{len(wrong)} tensors differ, the first is {wrong[0]}")

    def torchscript() -> None:
        network = loaded()
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "model.ts")
            ckpt_export("network_def", file, str(weights), str(configs / "metadata.json"), inference)
            scripted = torch.jit.load(file)
        channels = metadata["network_data_format"]["inputs"]["image"]["num_channels"]
        with torch.no_grad():
            for batch in (1, 3):
                image = torch.rand(batch, channels, 64, 48)
                torch.testing.assert_close(scripted(image), network(image))

    yield "Another program loads the network", loads
    yield "Another program trains, evaluates and infers", runs
    yield "Metadata follows its schema", schema_holds
    yield "Workflows have MONAI's properties", properties
    yield "Weights match the network exactly", weights_fit
    yield "Network takes and gives what the metadata says", network_fits
    yield "TorchScript export gives the network's output", torchscript


def run(bundle: Path, schema: str, data: dict[str, dict[str, Any]]) -> None:
    """Run the checks, one result each."""
    for name, check in checks(bundle, schema, data):
        fault = ""
        try:
            check()
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            fault = " ".join(str(cause).split())[:300] or type(cause).__name__
        print(f"RESULT {json.dumps([name, fault])}", flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
