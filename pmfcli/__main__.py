"""The ``pmf`` command, and ``python -m pmfcli``."""

import gc
import sys
from typing import NoReturn

_OBJECTS = 1_000_000  # more than are imported, which all stay: to look through them for garbage takes a seventh of a second


def main() -> NoReturn:
    """Run ``pmf`` and exit; Ctrl-C is one line and code 130 even while the command line is still being imported."""
    gc.set_threshold(_OBJECTS)
    try:
        from pmfcli.cli import main as command
    except KeyboardInterrupt:
        print("pmf: interrupted", file=sys.stderr)
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
