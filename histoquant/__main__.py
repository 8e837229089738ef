"""``python -m histoquant`` is the command ``histoquant``."""

from histoquant.cli import main

if __name__ == "__main__":
    main()
