"""``python -m bundle bench``: what this machine makes of the bundle."""
