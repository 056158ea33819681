from __future__ import annotations

from importlib.util import find_spec

# MONAI Label needs a separate environment: `make test-label` creates it and runs these tests, `make test` does not.
collect_ignore_glob = [] if find_spec("monailabel") else ["test_*.py"]
