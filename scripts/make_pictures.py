"""Make the pictures of the README and the site from real runs on k2-tiny.

    python scripts/make_pictures.py [--out out/pictures]

Quantizes and verifies k2-tiny and measures it with `moe4 prove --quick`. docs/images/quantize.svg is what the
first two commands print, rendered by rich; docs/images/report.png is a screenshot of the report by Chromium.
Run it on a quiet machine: the picture shows how long the run took.
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
MOE4 = str(Path(sys.executable).with_name("moe4"))
SOURCE = "reference/k2-tiny"
WIDTH = 104  # columns of the terminal
PROOF = ("--task", "k2_tiny_problems_0shot", "--data", "reference", "--requests", "reference", "--quick")


def run(*arguments: str) -> str:
    """Run a command of moe4's; return what a terminal would show."""
    command = [MOE4, *arguments]
    result = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode:
        sys.exit(
            f"make_pictures: moe4 {' '.join(arguments)} ended with {result.returncode}:\n{result.stdout}"
        )
    return result.stdout


def picture(parts: list[tuple[str, str]]) -> str:
    """Return commands and what they printed as an SVG, in the reader's own monospaced font."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for shown, printed in parts:
        console.print(Text("$ ", "green") + Text(shown, "bold"))
        console.print(Text(printed.rstrip("\n")))
    svg = console.export_svg(title="moe4", clear=False)
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)  # the site loads nothing from elsewhere


def screenshot(report: Path, image: Path) -> None:
    """Write the top of the report as a PNG."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("make_pictures: install Chromium for the screenshot (Debian: apt-get install chromium)")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--window-size=1200,655", f"--screenshot={image}", report.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/pictures"), help="folder for the release")
    release = parser.parse_args().out / "k2-tiny-w4a16"
    if (ROOT / release).exists():
        sys.exit(f"make_pictures: {release} exists; remove it, or give --out another folder")
    shown = "out/k2-tiny-w4a16"
    commands = (
        ("quantize", SOURCE, str(release), "--calibration", "reference"),
        ("verify", str(release), "--source", SOURCE),
    )
    parts = []
    for command in commands:
        text = " ".join(("moe4", *command)).replace(str(release), shown)
        parts.append((text, run(*command).replace(str(release), shown)))
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / "quantize.svg").write_text(picture(parts), encoding="utf-8")
    run("prove", SOURCE, str(release), *PROOF)
    screenshot(ROOT / release / "proof" / "report.html", IMAGES / "report.png")


if __name__ == "__main__":
    main()
