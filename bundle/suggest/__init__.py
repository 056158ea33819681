"""``python -m bundle suggest``: which cases to label next."""
