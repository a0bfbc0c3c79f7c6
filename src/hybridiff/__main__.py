"""`python -m hybridiff` is the command `hybridiff`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
