"""Lets torchvision be imported beside a PyTorch that its compiled operators were not built for.

The torchvision that pip installs is built for CUDA. Beside a CPU-only PyTorch its library does not load, and the import
then fails where it registers shape functions for two operators that nobody declared. MONAI Label imports torchvision
for its picture helpers alone, so two empty declarations are all it takes. `make label-demo` copies this module into the
environment with a .pth file that imports it when Python starts; it costs nothing until torchvision is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

__all__ = ["DeclareOperators"]


class DeclareOperators(MetaPathFinder):
    """Import hook that finds nothing, but acts once, just before torchvision is imported."""

    library: object = None  # the declarations live as long as this

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Declare the operators where torchvision's library does not load; leave the import to the other finders."""
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec("torchvision")
        if spec is not None and spec.submodule_search_locations:
            self._declare(Path(next(iter(spec.submodule_search_locations))))
        return None

    @staticmethod
    def _declare(package: Path) -> None:
        import torch  # late: most programs of the environment need no torch

        try:
            for extension in package.glob("_C.*"):
                torch.ops.load_library(str(extension))
                return
        except OSError:
            pass
        library = DeclareOperators.library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, DeclareOperators())
