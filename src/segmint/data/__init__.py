"""Read, check, split, cache and augment data folders."""
