"""One file, one method. `build("name")` finds it by its file name."""
