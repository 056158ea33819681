"""``python -m bundle prepare``: check a data set and freeze it as a datalist."""
