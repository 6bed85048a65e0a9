"""`python -m dpool`: the same as the command `dpool`."""

from __future__ import annotations

import sys

from dpool.cli import main

if __name__ == "__main__":
    sys.exit(main())
