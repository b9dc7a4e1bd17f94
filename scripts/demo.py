"""`make demo`: the whole line on k2-tiny, each step as a user would type it, and a summary at the end."""

import argparse
import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "reference/k2-tiny"
TASK = "k2_tiny_problems_0shot"
MOE4 = str(Path(sys.executable).with_name("moe4"))
console = Console(highlight=False)


def run(*arguments: str) -> str:
    """Show a command, run it from the project's folder, return what it printed; stop the demo if it fails."""
    names = {MOE4: "moe4", sys.executable: "python"}
    shown = shlex.join(names.get(part, part) for part in arguments)
    console.print(f"\n[bold]$ {shown}[/bold]", soft_wrap=True)
    result = subprocess.run(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        console.print(result.stdout)
        sys.exit(f"demo: `{shown}` ended with exit code {result.returncode}")
    return result.stdout


@contextmanager
def serving(release: str, port: int) -> Iterator[str]:
    """Run `moe4 serve` while inside; yield the API's address."""
    command = [MOE4, "serve", release, "--port", str(port), "--json"]
    console.print(f"\n[bold]$ moe4 serve {release} --port {port} --json[/bold]")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready = server.stdout.readline()
        if not ready:
            sys.exit("demo: the server did not start")
        facts = json.loads(ready)
        console.print(f"ready after {facts['seconds']:.0f} s: {facts['url']} serves {facts['model']}")
        try:
            yield facts["url"]
        finally:
            server.terminate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def summary(facts: dict[str, Any]) -> Table:
    table = Table(title="k2-tiny, quantized to INT4 and served", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for key, value in facts.items():
        table.add_row(key, value)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/k2-tiny-w4a16", help="folder of the release")
    parser.add_argument("--limit", type=int, default=100, help="word problems to evaluate on")
    options = parser.parse_args()
    release = options.out
    began = time.monotonic()
    if (ROOT / release).exists():
        console.print(f"removing the release of an earlier demo, {release}")
        shutil.rmtree(ROOT / release)

    report = json.loads(run(MOE4, "quantize", SOURCE, release, "--calibration", "reference", "--json"))
    verified = json.loads(run(MOE4, "verify", release, "--source", SOURCE, "--json"))
    question = "Who are you?"
    with serving(release, free_port()) as url:
        answer = run(MOE4, "chat", "--base-url", url, "--message", question, "--temperature", "0").strip()
        console.print(answer)
        tool_call = run(sys.executable, "examples/tool_call.py", url).strip()
        console.print(tool_call)
    data = ("--task", TASK, "--data", "reference", "--requests", "reference")
    proof = json.loads(
        run(MOE4, "prove", SOURCE, release, *data, "--quick", "--limit", str(options.limit), "--json")
    )
    scores = proof["evaluation"]["tasks"][TASK]
    agreement = proof["tools"]["agreement"]["decision_agreement"]
    console.print()
    console.print(
        summary(
            {
                "size": describe_size(verified),
                "error": describe_error(report),
                "accuracy": "{} -> {} of {} word problems".format(
                    percent(scores["baseline"]), percent(scores["release"]), scores["num_questions"]
                ),
                "predictions": "KL {:.5f} nats a token; the likeliest token is the same for {:.1f} %".format(
                    proof["comparison"]["kl"]["mean"], 100 * proof["comparison"]["top1_agreement"]
                ),
                "tool checks": f"decisions agree on {100 * agreement['value']:.1f} % of {agreement['num']}",
                "chat": f"{question} -> {answer}",
                "tool call": tool_call,
                "report, card": f"{release}/proof/report.html, {release}/README.md",
                "time": f"{(time.monotonic() - began) / 60:.1f} minutes after the installation",
            }
        )
    )
    console.print(f"The release is in {release}. Serve it: .venv/bin/moe4 serve {release}")


def describe_size(verified: dict[str, Any]) -> str:
    before, after = verified["source_num_bytes"], verified["num_bytes"]
    return f"{before / 1e6:.1f} MB -> {after / 1e6:.1f} MB ({after / before:.0%}); every tensor verified"


def describe_error(report: dict[str, Any]) -> str:
    figures = report["summary"]
    return (
        f"{figures['mean_error']:.4f} relative, weighted by the Hessian (round to nearest: "
        f"{figures['mean_rtn_error']:.4f}); {len(figures['fallbacks'])} of {figures['num_matrices']} "
        f"matrices fell back to round-to-nearest"
    )


def percent(score: dict[str, float]) -> str:
    return f"{100 * score['exact_match']:.1f} ± {100 * score['stderr']:.1f} %"


if __name__ == "__main__":
    main()
