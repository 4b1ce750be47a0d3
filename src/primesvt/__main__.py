"""``python -m primesvt`` is the ``primesvt`` command."""

import sys

from primesvt.cli import main

if __name__ == "__main__":
    sys.exit(main())
