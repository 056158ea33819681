"""Run one command of the bundle: ``python -m bundle COMMAND [--option value ...]``."""

from __future__ import annotations

import sys
from importlib import import_module

import fire

__all__ = ["COMMANDS", "main"]

# Named, not imported: starting one command does not load what the others need.
COMMANDS = {
    "bench": "bundle.bench:main",
    "compare": "bundle.compare:main",
    "demo": "bundle.demo:main",
    "pack": "bundle.pack:main",
    "prepare": "bundle.prepare:main",
    "pseudo_labels": "bundle.pseudo_labels:main",
    "verify": "bundle.verify:main",
}


def main(argv: list[str] | None = None) -> None:
    """Find the command that the first argument names and hand it the others.

    Args:
        argv: arguments without the program's name; default: those of this process.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] not in COMMANDS:
        sys.exit(f"usage: python -m bundle COMMAND [--help], COMMAND one of: {', '.join(sorted(COMMANDS))}")
    module, function = COMMANDS[arguments[0]].split(":")
    fire.Fire(getattr(import_module(module), function), command=arguments[1:], name=f"python -m bundle {arguments[0]}")


if __name__ == "__main__":
    main()
