"""What a kernel path does to k2-tiny's predictions: KL divergence and flips from the BF16 model, all in vLLM.

    python benchmarks/bench_path_accuracy.py RELEASE [--paths avx512_int16,avx512_vnni] [--sequences 300]

Each model runs in a process of its own over the same held-out chats, then problems with their answers; every
position's whole distribution is compared. A flip is another best token. JSON on stdout; needs about 2 GB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_rest import CHATS, REFERENCE

BATCH = 20  # sequences whose distributions vLLM holds as Python objects at once
MAX_TOKENS = 512
PATHS = ["avx512_int16", "avx512_bf16", "avx512_vnni"]


def read_sequences(count: int) -> list[list[int]]:
    """Return `count` held-out sequences as token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    rows = []
    for name in ("heldout-chats", "heldout-problems"):
        rows += [json.loads(line) for line in (CHATS / f"{name}.jsonl").read_text().splitlines()]
    sequences = []
    for row in rows[:count]:
        messages = row.get("messages") or [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        text = tokenizer.apply_chat_template(
            messages, tools=row.get("tools"), tokenize=False, add_generation_prompt=False
        )
        sequences.append(tokenizer.encode(text, add_special_tokens=False)[:MAX_TOKENS])
    return sequences


def save_predictions(model: str, load_format: str, sequences: list[list[int]], file: Path) -> None:
    """Save float32 [positions, vocabulary]: log-probabilities after each token but a sequence's last."""
    import torch
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        load_format=load_format,
        dtype="bfloat16",
        max_model_len=1024,
        max_logprobs=-1,
        enforce_eager=True,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )
    sampling = SamplingParams(
        max_tokens=1, temperature=0.0, prompt_logprobs=-1, flat_logprobs=True, detokenize=False
    )
    rows = []
    for first in range(0, len(sequences), BATCH):
        prompts = [{"prompt_token_ids": ids} for ids in sequences[first : first + BATCH]]
        for output in llm.generate(prompts, sampling, use_tqdm=False):
            found = output.prompt_logprobs
            for begin, end in zip(found.start_indices[1:], found.end_indices[1:], strict=True):
                tokens = torch.tensor(found.token_ids[begin:end])
                row = torch.full((int(tokens.max()) + 1,), float("nan"))
                row[tokens] = torch.tensor(found.logprobs[begin:end])
                rows.append(row)
    torch.save(torch.stack(rows), file)


def difference(base: Any, rows: Any) -> dict[str, float]:
    """Compare log-probabilities [positions, vocabulary]: KL(base || rows) in nats, and flips."""
    divergence = (base.double().exp() * (base.double() - rows.double())).sum(dim=1)
    flips = (base.argmax(1) != rows.argmax(1)).double()
    result = {}
    for name, values in (("kl_nats", divergence), ("flips", flips)):
        result[name] = float(values.mean())
        result[f"{name}_standard_error"] = float(values.std() / len(values) ** 0.5)
    return result


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", type=Path)
    parser.add_argument("--paths", type=lambda text: text.split(","), default=PATHS)
    parser.add_argument("--sequences", type=int, default=300)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        model, load_format, file = arguments.child
        save_predictions(model, load_format, read_sequences(arguments.sequences), Path(file))
        return
    import torch

    def predictions(model: Path, load_format: str, environment: dict[str, str]) -> Any:
        file = Path(folder) / "rows.pt"
        command = [sys.executable, __file__, str(model), "--sequences", str(arguments.sequences)]
        command += ["--child", str(model), load_format, str(file)]
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        subprocess.run(command, env={**settings, **os.environ, **environment}, check=True, stdout=sys.stderr)
        return torch.load(file)

    result: dict[str, Any] = {"release": str(arguments.release), "sequences": arguments.sequences}
    with tempfile.TemporaryDirectory() as folder:
        base = predictions(REFERENCE, "auto", {})
        result["positions"] = len(base)
        first = None
        for path in arguments.paths:
            rows = predictions(arguments.release, "moe4", {"MOE4_KERNEL": path})
            result[path] = {"from BF16": difference(base, rows)}
            if first is None:
                first = rows
            else:
                result[path][f"from {arguments.paths[0]}"] = difference(first, rows)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
