"""``python -m bundle pack`` and ``verify``: bundles that others download."""
