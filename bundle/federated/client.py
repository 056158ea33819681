"""A site as a client of NVFlare, which starts this script at every site (``bundle.federated.demo``)."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import nvflare.client as flare

__all__ = ["main"]


def main(argv: list[str] | None = None) -> None:
    """In every round, train from the received weights and send the result, until the server ends the job.

    Args:
        argv: command line; default: this process's.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle_root", required=True, help="the repository, or a copy of it, at this site")
    parser.add_argument("--options", required=True, help="JSON file of this site: files, and options by config id")
    given = parser.parse_args(argv)
    sys.path.insert(0, given.bundle_root)  # NVFlare runs a copy of this script elsewhere
    from bundle.federated.sites import Site

    flare.init()
    options = json.loads(Path(given.options).read_text(encoding="utf-8"))
    site = Site(flare.get_site_name(), **options)
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        weights, share = site.train(received.params)
        flare.send(
            flare.FLModel(
                params=weights,
                params_type=flare.ParamsType.FULL,
                # the weight in NVFlare's average, which NVFlare calls a number of steps
                meta={"NUM_STEPS_CURRENT_ROUND": share},
            )
        )


if __name__ == "__main__":
    main()
