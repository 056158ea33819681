"""Layouts of data sets on disk: the cases of a folder or a datalist, one file per layout."""
