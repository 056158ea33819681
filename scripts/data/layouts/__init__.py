"""How each data set lies on disk: cases of a folder or a datalist, one file per layout."""
