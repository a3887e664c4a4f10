"""The ``pmf`` command, and ``python -m pmfcli``."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run ``pmf`` and exit; Ctrl-C is Ctrl-C even before there is a command line that could say so."""
    try:
        from pmfcli.cli import main as command
    except KeyboardInterrupt:
        print("pmf: interrupted", file=sys.stderr)
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
