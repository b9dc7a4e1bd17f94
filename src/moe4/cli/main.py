"""Entry point of `moe4`. It imports almost nothing before `main` runs, so that Ctrl-C works at once."""

import os
import sys

from moe4.errors import INTERRUPTED_EXIT_CODE


def main() -> None:
    """Run the command line and exit with one of the codes in moe4.errors."""
    try:
        from moe4.cli.net import run

        code = run()
    except KeyboardInterrupt:
        os.write(2, b"moe4: interrupted\n")
        code = INTERRUPTED_EXIT_CODE
    sys.exit(code)
