"""``python -m bundle bench``: time and memory of the bundle on this machine."""
