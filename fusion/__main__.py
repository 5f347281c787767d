"""The command `fusion`, also `python -m fusion`."""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
