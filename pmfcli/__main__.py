"""``python -m pmfcli``."""

from pmfcli.cli import main

if __name__ == "__main__":
    main()
