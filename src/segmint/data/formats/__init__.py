"""Other programs' data sets, one file each, found by its name; see `segmint.data.formats.format`."""
