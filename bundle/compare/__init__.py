"""``python -m bundle compare``: several methods, ablations and seeds in one command."""
