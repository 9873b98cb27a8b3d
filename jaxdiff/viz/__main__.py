"""Figures from files: ``python -m jaxdiff.viz COMMAND --help``."""

import sys

from jaxdiff.viz.cli import main

if __name__ == "__main__":
    sys.exit(main())
