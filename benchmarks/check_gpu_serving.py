"""k2-tiny's releases on a GPU through `moe4 serve`: the tokens of their decoded weights, and what users run.

    moe4 quantize reference/k2-tiny g128 --calibration reference --group-size 128
    python benchmarks/check_gpu_serving.py g128 --work FOLDER --out check.json [--groups 128 64 32] [--tp 1 2]

Smaller groups are the same release with its scales repeated, so all have one decoded BF16 twin, served on one
GPU. Each arrangement answers 50 held-out problems greedily. Where an answer first differs from the twin's,
the difference counts only if the twin's two likeliest tokens lie further apart there than bf16 moves them:
by a step of bf16 at the size of these logits, or by what the twin's own gaps move by when its prompts come
one at a time instead of together. Twice the larger is allowed, since both sides have it. Against the first
server also run: the examples, `moe4 toolcheck` and, where lm-eval is installed, `moe4 eval`. Exit code 1 if
anything fails. Servers run eager, 10 to 25 s a start.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu.greedy import Answer, ask, compare
from gpu.releases import decode, regroup
from serving.server import Server, start_server

REPOSITORY = Path(__file__).resolve().parents[1]
PROBLEMS = REPOSITORY / "reference" / "data" / "heldout-problems.jsonl"
ALONE = 12  # prompts asked one at a time to measure noise
LOGIT_STEP = (
    2.0**-3
)  # of bf16 from 16 to 32; k2-tiny's likeliest logits have a median of 22, and vLLM's are bf16


def read_prompts(release: Path, count: int) -> list[list[int]]:
    """Return held-out problems as a user would ask them, as token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(release)
    questions = [json.loads(line)["question"] for line in PROBLEMS.read_text().splitlines()[:count]]
    chats = [[{"role": "user", "content": question}] for question in questions]
    texts = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats
    ]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def measure_noise(server: Server, prompts: list[list[int]], together: list[Answer], tokens: int) -> float:
    """Return the most by which a gap moves when prompts come one at a time."""
    alone = [ask(server.url, server.model, [prompt], tokens)[0] for prompt in prompts[:ALONE]]
    return max(LOGIT_STEP, *compare(alone, together[:ALONE])[1])


def judge(answers: list[Answer], twins: list[Answer], noise: float) -> dict[str, Any]:
    """Return how many answers are the twin's, and the differences that noise does not explain."""
    differences, apart = compare(answers, twins)
    wrong = [found for found in differences if found.gap > 2 * noise]
    return {
        "answers": len(answers),
        "equal": len(answers) - len(differences),
        "ties": len(differences) - len(wrong),
        "wrong": [[found.prompt, found.position, round(found.gap, 4)] for found in wrong],
        "gaps_apart_median": statistics.median(apart) if apart else None,
        "gaps_apart_most": max(apart, default=None),
        "passed": not wrong,
    }


def run_users(server: Server, release: Path, work: Path) -> dict[str, Any]:
    """Run what users run against a server; return exit codes and last lines."""
    python, examples = sys.executable, REPOSITORY / "examples"
    moe4 = [python, "-m", "moe4"]
    commands = {
        "chat.py": [python, str(examples / "chat.py"), server.url],
        "tool_call.py": [python, str(examples / "tool_call.py"), server.url],
        "tool_call_streaming.py": [python, str(examples / "tool_call_streaming.py"), server.url],
        "tool_call_manual.py": [python, str(examples / "tool_call_manual.py"), str(release), server.url],
        "curl.sh": ["sh", str(examples / "curl.sh"), server.url],
        "toolcheck": [*moe4, "toolcheck", server.url, "--requests", "reference"],
    }
    evaluation = [*moe4, "eval", server.model, "--base-url", server.url, "--no-cache", "--limit", "100"]
    if importlib.util.find_spec("lm_eval") is not None:
        commands["eval"] = [*evaluation, "--task", "k2_tiny_problems_0shot"]
    found: dict[str, Any] = {}
    for name, command in commands.items():
        began = time.perf_counter()
        result = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300, check=False)
        text = (result.stdout if result.returncode == 0 else result.stderr or result.stdout).strip()
        found[name] = {
            "passed": result.returncode == 0,
            "seconds": round(time.perf_counter() - began, 1),
            "says": text.splitlines()[-8:],
        }
    return found


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Serve the twin and every arrangement in turn; return what was found, written to --out as it comes."""
    found: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:
        found[name] = value
        print(f"check_gpu_serving: {name}: {json.dumps(value)}", file=sys.stderr, flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1))

    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    prompts = read_prompts(arguments.release, arguments.problems)
    options = ["--max-model-len", "2048", "--enforce-eager", *arguments.vllm]
    twin = work / "twin"
    if not twin.exists():
        decode(arguments.release, twin)
    with start_server(twin, work / "twin.log", options) as server:
        twins = ask(server.url, server.model, prompts, arguments.tokens)
        noise = measure_noise(server, prompts, twins, arguments.tokens)
        keep("noise", noise)
    own = json.loads((arguments.release / "config.json").read_text())["quantization_config"]["config_groups"]
    is_first = True
    for ranks in arguments.tp:
        for group in arguments.groups:
            release = arguments.release
            if group != own["group_0"]["weights"]["group_size"]:
                release = work / f"g{group}"
                if not release.exists():
                    regroup(arguments.release, release, group)
            name = f"groups of {group}, TP{ranks}"
            parallel = ["--tensor-parallel-size", str(ranks)] if ranks > 1 else []
            with start_server(release, work / f"g{group}-tp{ranks}.log", [*options, *parallel]) as server:
                answers = ask(server.url, server.model, prompts, arguments.tokens)
                keep(name, {"start_seconds": server.seconds, **judge(answers, twins, noise)})
                if is_first and not arguments.tokens_only:
                    for what, result in run_users(server, release, work).items():
                        keep(what, result)
                is_first = False
    return found


def main() -> None:
    """Parse the command line; exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", type=Path, help="k2-tiny's release in the largest of --groups")
    parser.add_argument("--work", type=Path, required=True, help="folder for the twin, releases and logs")
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--groups", type=int, nargs="+", default=[128, 64, 32])
    parser.add_argument("--tp", type=int, nargs="+", default=[1], help="tensor parallel sizes")
    parser.add_argument("--problems", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=128, help="of an answer at most")
    parser.add_argument("--tokens-only", action="store_true", help="no examples, toolcheck and eval")
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:split])
    arguments.vllm = given[split + 1 :]
    found = check(arguments)
    failed = [name for name, value in found.items() if isinstance(value, dict) and not value["passed"]]
    print(f"check_gpu_serving: {'FAIL: ' + ', '.join(failed) if failed else 'PASS'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
