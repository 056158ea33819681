"""Running the bundle's workflows from Python, as ``python -m monai.bundle run``, and in separate processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.utils.files import write_text
from scripts.utils.validation import read_json

__all__ = [
    "CONFIGS",
    "ROOT",
    "check_settings",
    "dataset_overlay",
    "execute",
    "isolated",
    "keep_settings",
    "method_names",
]

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


def dataset_overlay(dataset: str) -> ConfigParser:
    """The overlay of a data set in ``configs/datasets``, with the bundle's root for its paths.

    Raises:
        ValueError: if there is no overlay of this name.
    """
    path = CONFIGS / "datasets" / f"{dataset}.json"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.json")))
        raise ValueError(f"dataset: expected one of {known}, found '{dataset}'.")
    parser = ConfigParser(ConfigParser.load_config_file(path))
    parser["bundle_root"] = str(ROOT)
    return parser


def execute(kind: str, files: Sequence[str | Path], **overrides: Any) -> None:
    """Run one workflow in this process, like ``python -m monai.bundle run``.

    Args:
        kind: ``train``, or ``infer`` for evaluation and inference.
        files: config files, merged in order; relative paths are below ``configs``.
        **overrides: values by config id.
    """
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in files],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=str(CONFIGS / "logging.conf"),
        workflow_type=kind,
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def keep_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Store what the results in a folder depend on, in ``settings.json``.

    Raises:
        ValueError: if the folder has results of other settings.
    """
    path = folder / "settings.json"
    content = json.dumps(settings, indent=4, default=str) + "\n"
    check_settings(path, json.loads(content))
    write_text(path, content)


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Compare settings with those in a file, if there is one.

    Raises:
        ValueError: if they differ.
    """
    if path.is_file() and (changed := list(_differences(read_json(path, "config"), settings))):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        what = "; ".join(changed[:3])
        raise ValueError(f"{path}: was started with other settings: {what}{more}. Choose another --output.")


def _differences(before: Any, after: Any, key: str = "") -> Iterator[str]:
    """Differences between two configurations, by id."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            inner = f"{key}#{name}" if key else name
            yield from _differences(before.get(name, "nothing"), after.get(name, "nothing"), inner)
    elif before != after:
        yield f"{key} was {str(before)[:60]}, is {str(after)[:60]}"


def isolated(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Result of a function in a separate process, which isolates its peak memory and a crash.

    Args:
        work: a function of a module; the first call's module is imported once for all calls, on Windows for each.
        *args: its arguments.
        **kwargs: its keyword arguments.

    Raises:
        concurrent.futures.process.BrokenProcessPool: if the process is killed.
    """
    served = "forkserver" in get_all_start_methods()  # not on Windows
    context = get_context("forkserver" if served else "spawn")
    if served:
        context.set_forkserver_preload([work.__module__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *args, **kwargs).result()


def method_names() -> list[str]:
    """Names of the objectives: the overlays in ``configs/methods``, sorted."""
    return sorted(path.stem for path in (CONFIGS / "methods").glob("*.json"))
