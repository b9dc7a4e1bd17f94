"""Write docs/cli.md from the commands' own help; with --check, only say whether it is up to date."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from moe4.cli.app import COMMANDS

FILE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """# Command line

`scripts/generate_cli_docs.py` makes this page from the commands' help, and `make check` compares them.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | a check failed |
| 2 | bad input; one line says what is wrong |
| 3 | `moe4 lint` found no error, but did not examine something |
| 70 | a bug in moe4; the line names a file to report |
| 130 | interrupted |
| 141 | the reader of standard output closed it |

With `MOE4_TRACEBACK=1` in the environment, moe4 prints tracebacks as well.
"""


def help_of(*command: str) -> str:
    program = [sys.executable, "-c", "from moe4.cli.main import main; main()", *command, "--help"]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    result = subprocess.run(program, capture_output=True, text=True, check=True, env=environment)
    return "\n".join(line.rstrip() for line in result.stdout.replace("Usage: -c", "Usage: moe4").splitlines())


def render() -> str:
    sections = [HEAD, "```", help_of(), "```", ""]
    for name in COMMANDS:
        sections += [f"## moe4 {name}", "", "```", help_of(name), "```", ""]
    return "\n".join(sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = render()
    if not options.check:
        FILE.write_text(text)
    elif not FILE.exists() or FILE.read_text() != text:
        sys.exit(f"docs/{FILE.name} is not what the commands say; run `python scripts/generate_cli_docs.py`")


if __name__ == "__main__":
    main()
