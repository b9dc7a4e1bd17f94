"""Where `moe4` begins. Hardly anything is imported before `main` runs, so that it hears Ctrl-C."""

import os
import sys

from moe4.errors import INTERRUPTED_EXIT_CODE


def main() -> None:
    """Run the command line and leave with one of the exit codes in moe4.errors."""
    try:
        from moe4.cli.net import run

        code = run()
    except KeyboardInterrupt:
        os.write(2, b"moe4: interrupted\n")
        code = INTERRUPTED_EXIT_CODE
    sys.exit(code)
