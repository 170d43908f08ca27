"""`python -m loadgen`: see `loadgen.cli`."""

import sys

from loadgen.cli import make_app

if __name__ == "__main__":
    sys.exit(make_app()())
