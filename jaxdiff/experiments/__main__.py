"""Studies of trained runs: ``python -m jaxdiff.experiments COMMAND --help``."""

import sys

from jaxdiff.experiments.cli import main

if __name__ == "__main__":
    sys.exit(main())
