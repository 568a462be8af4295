"""`python -m metalayer` is the `metalayer` command."""

import sys

from metalayer.cli import main

if __name__ == "__main__":
    sys.exit(main())
