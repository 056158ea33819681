"""Makes torchvision importable with a PyTorch that its compiled operators were not built for.

pip installs a torchvision built for CUDA. With a CPU-only PyTorch its library does not load, and the import then fails
because it registers shape functions for two undeclared operators. MONAI Label uses only torchvision's image helpers, so
two empty declarations suffice. `make label-demo` copies this module into the environment with a .pth file that imports
it when Python starts; it has no cost until torchvision is imported.
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
    """Import hook that finds no module, but acts once, just before torchvision is imported."""

    library: object = None  # keeps the declarations alive

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Declare the operators if torchvision's library does not load; the other finders do the import."""
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec("torchvision")
        if spec is not None and spec.submodule_search_locations:
            self._declare(Path(next(iter(spec.submodule_search_locations))))
        return None

    @staticmethod
    def _declare(package: Path) -> None:
        import torch  # imported late: most programs of the environment do not need torch

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
