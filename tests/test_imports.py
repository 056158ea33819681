"""The modules' imports: no cycle between modules or packages, and no import of ``bundle`` in ``scripts``."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("scripts", "bundle")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """The bundle's own modules that each module imports, also within functions."""
    paths = {module_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    found: dict[str, set[str]] = {}
    for module, path in paths.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in paths else str(node.module) for name in members}
        found[module] = (names & paths.keys()) - {module}
    return found


def test_scripts_never_import_bundle(imports: dict[str, set[str]]) -> None:
    upwards = {name: found for name, found in imports.items() if name.startswith("scripts") and "bundle" in str(found)}
    assert upwards == {}


def test_modules_import_each_other_in_no_circle(imports: dict[str, set[str]]) -> None:
    assert len([*TopologicalSorter(imports).static_order()]) == len(imports)


def test_rooms_import_each_other_in_no_circle(imports: dict[str, set[str]]) -> None:
    """A package is a folder or a top-level module: ``scripts.data``, ``scripts.losses``, ``bundle.share``."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    graph: dict[str, set[str]] = {}
    for module, found in imports.items():
        graph.setdefault(room(module), set()).update({room(name) for name in found} - {room(module)})
    order = [*TopologicalSorter(graph).static_order()]
    assert order.index("scripts.utils") < order.index("scripts.data") < order.index("scripts.handlers")
