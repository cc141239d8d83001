"""`python -m segmint` is `segmint`."""

from segmint.cli import main

if __name__ == "__main__":
    main()
