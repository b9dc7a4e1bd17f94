"""What `--rest int8` and `int4` do to k2-tiny's predictions: KL divergence from the BF16 model, all in vLLM.

    python benchmarks/bench_rest.py RELEASE [--tokens 1500]

Each model runs in a process of its own over the same held-out chats; every position's whole distribution is
compared. JSON on stdout.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE = REPOSITORY / "reference" / "k2-tiny"
CHATS = REPOSITORY / "reference" / "data"


def read_prompts(num_tokens: int) -> list[list[int]]:
    """Return held-out chats as token ids, `num_tokens` in all."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    lines = (CHATS / "heldout-chats.jsonl").read_text().splitlines()
    prompts: list[list[int]] = []
    left = num_tokens
    for line in lines:
        chat = json.loads(line)
        text = tokenizer.apply_chat_template(
            chat["messages"], tools=chat.get("tools"), tokenize=False, add_generation_prompt=False
        )
        prompts.append(tokenizer.encode(text, add_special_tokens=False)[: min(left, 400)])
        left -= len(prompts[-1])
        if left < 2:
            return prompts
    return prompts


def log_probabilities(model: str, engine: dict[str, Any], prompts: list[list[int]], file: Path) -> None:
    """Save [positions, vocabulary] float32: the prediction after each token but the last of each prompt."""
    import torch
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        dtype="bfloat16",
        max_model_len=1024,
        max_logprobs=-1,
        enforce_eager=True,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        **engine,
    )
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=-1, detokenize=False)
    rows = []
    for output in llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling):
        for entry in output.prompt_logprobs[1:]:
            row = torch.full((len(entry),), -math.inf)
            for token, value in entry.items():
                row[token] = value.logprob
            rows.append(row)
    torch.save(torch.stack(rows), file)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", type=Path)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    prompts = read_prompts(arguments.tokens)
    if arguments.child:
        model, engine, file = arguments.child
        log_probabilities(model, json.loads(engine), prompts, Path(file))
        return
    import torch

    ours = {"load_format": "moe4"}
    runs: dict[str, tuple[Path, dict[str, Any]]] = {
        "BF16": (REFERENCE, {}),
        "W4A16": (arguments.release, ours),
    }
    for rest in ("int8", "int4"):
        engine = {**ours, "model_loader_extra_config": {"rest": rest}}
        runs[f"W4A16, rest {rest}"] = (arguments.release, engine)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, engine) in runs.items():
            file = Path(folder) / "rows.pt"
            command = [sys.executable, __file__, str(arguments.release), "--tokens", str(arguments.tokens)]
            command += ["--child", str(model), json.dumps(engine), str(file)]
            environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "VLLM_LOGGING_LEVEL": "WARNING"}
            subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
            found[name] = torch.load(file).double()
    base = found.pop("BF16")
    result: dict[str, Any] = {"positions": len(base)}
    for name, rows in found.items():
        divergence = (base.exp() * (base - rows)).sum(dim=1)
        result[name] = {
            "kl_nats": float(divergence.mean()),
            "kl_standard_error": float(divergence.std() / len(divergence) ** 0.5),
            "same_best_token": float((base.argmax(1) == rows.argmax(1)).double().mean()),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
