"""``python -m bundle suggest``: the cases to label next."""
