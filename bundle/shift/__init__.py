"""``python -m bundle shift``: accuracy of the predicted quality, also under distribution shift."""
