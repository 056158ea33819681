"""``python -m bundle shift``: what predicted quality is worth, also on images unlike the training set's."""
