"""Run one command of the bundle: ``python -m bundle COMMAND [--option value ...]``."""

from __future__ import annotations

import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import fire
from fire.decorators import SetParseFns

from scripts.utils.errors import INTERRUPTED, plain_line, plain_output

__all__ = ["COMMANDS", "main"]

ROOT = Path(__file__).resolve().parents[1]

# Imported on demand, so that a command does not load the others' dependencies.
COMMANDS = {
    "bench": "bundle.bench.command:main",
    "compare": "bundle.compare.command:main",
    "demo": "bundle.demo:main",
    "doctor": "bundle.doctor:main",
    "global_model": "bundle.federated.global_model:main",
    "import": "bundle.dicom.importing:main",
    "pack": "bundle.share.pack:main",
    "prepare": "bundle.prepare.command:main",
    "pseudo_labels": "bundle.pseudo_labels:main",
    "report": "bundle.report.command:main",
    "send": "bundle.dicom.sending:main",
    "shift": "bundle.shift.command:main",
    "suggest": "bundle.suggest.command:main",
    "verify": "bundle.share.verify:main",
}


def main(argv: list[str] | None = None) -> None:
    """Run the command in the first argument with the other arguments.

    A user's mistake is reported in one line instead of a traceback.

    Args:
        argv: arguments without the program's name; default: those of this process.
    """
    plain_output()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] not in COMMANDS:
        sys.exit(f"usage: python -m bundle COMMAND [--help], COMMAND one of: {', '.join(sorted(COMMANDS))}")
    module, name = COMMANDS[arguments[0]].split(":")
    try:
        from scripts.utils.options import check_paths  # here, because it imports PyTorch

        function = getattr(import_module(module), name)
        # Fire converts words to numbers, but a folder may be named 2018
        texts = [p.name for p in signature(function).parameters.values() if p.annotation in ("str", "str | None")]
        check_paths([word for word in arguments if word.lstrip("-").partition("=")[0] not in texts])
        command = SetParseFns(**dict.fromkeys(texts, str))(function)
        fire.Fire(command, command=arguments[1:], name=f"python -m bundle {arguments[0]}")
    except (Exception, KeyboardInterrupt) as error:
        if (line := plain_line(error, ROOT / "bundle", ROOT / "scripts")) is None:
            raise  # an unexpected error keeps its traceback
        print(f"error: {line}", file=sys.stderr)
        sys.exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1)


if __name__ == "__main__":
    main()
