"""Measure k2-tiny: `python -m k2tiny.evaluate FOLDER`, or `--base-url URL` for a served model's tool calls.

FOLDER is measured with transformers alone, a look while training. With --base-url the held-out tool turns are
put to an OpenAI-compatible server, as a user's program would. The accuracies on word problems that count come
from `moe4 eval`, through vLLM.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from openai import OpenAI
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from k2tiny.model import build_model, load_config
from k2tiny.places import CHECKPOINT, DATA
from moe4.serve.tool_calls import parse_answer


def load_model(folder: Path, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Load a checkpoint of `k2tiny.train`, ready to generate."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(shard)
    model = build_model(load_config(folder), dtype=dtype)
    for name, value in model.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            stacked = [
                torch.cat([tensors[f"{stem}{e}.gate_proj.weight"], tensors[f"{stem}{e}.up_proj.weight"]])
                for e in range(value.shape[0])
            ]
            value.copy_(torch.stack(stacked))
        elif name.endswith("experts.down_proj"):
            stem = name.removesuffix("down_proj")
            value.copy_(torch.stack([tensors[f"{stem}{e}.down_proj.weight"] for e in range(value.shape[0])]))
        else:
            value.copy_(tensors[name])
    model.set_attn_implementation("sdpa")
    return model.to(device).eval()


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    max_new_tokens: int,
    stop: str | None = None,
    batch_size: int = 128,
) -> list[str]:
    """Greedy continuations of rendered prompts, special tokens kept, cut at [EOS] or <|im_end|>."""
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("[EOS]", "<|im_end|>")]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    tokenizer.padding_side = "left"
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer(
            [prompts[index] for index in chosen],
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
            return_token_type_ids=False,
        ).to(model.device)
        output = model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=ends[0],
            stop_strings=[stop] if stop else None,
            tokenizer=tokenizer,
        )
        for index, ids in zip(chosen, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            cut = next((place for place, token in enumerate(ids) if token in ends), len(ids))
            answers[index] = tokenizer.decode(ids[:cut], skip_special_tokens=False)
    return answers


def final_number(answer: str) -> str | None:
    """Return what follows the first `####`, as GSM8K writes its answers."""
    _, mark, rest = answer.partition("####")
    return rest.split("\n")[0].strip().replace(",", "") if mark else None


def problem_accuracy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[dict[str, str]],
    shots: list[dict[str, str]],
) -> float:
    """Exact final answers over word problems, with `shots` solved problems before each."""
    head = "".join(f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in shots)
    prompts = [f"{head}Question: {problem['question']}\nAnswer:" for problem in problems]
    answers = generate(model, tokenizer, prompts, max_new_tokens=300, stop="Question:")
    right = [
        final_number(answer) == final_number(problem["answer"])
        for answer, problem in zip(answers, problems, strict=True)
    ]
    return sum(right) / len(right)


def tool_accuracy(
    model: Any, tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Return the share of right turns by kind: names and arguments of every call, in order, nothing more.

    A turn that wants no call is right when none is made.
    """
    prompts = [
        tokenizer.apply_chat_template(
            turn["messages"], tools=turn["tools"], add_generation_prompt=True, tokenize=False
        )
        for turn in turns
    ]
    answers = generate(model, tokenizer, prompts, max_new_tokens=200)
    return score_turns(turns, [calls_of(answer) for answer in answers])


def served_tool_accuracy(
    base_url: str, turns: list[dict[str, Any]], *, concurrency: int = 16
) -> dict[str, dict[str, float]]:
    """Put the turns to a server's chat completions, greedily; scored as in `tool_accuracy`."""
    client = OpenAI(base_url=base_url, api_key="none", timeout=600)
    model = client.models.list().data[0].id

    def ask(turn: dict[str, Any]) -> list[dict[str, Any]] | None:
        answer = client.chat.completions.create(
            model=model, messages=turn["messages"], tools=turn["tools"], temperature=0, max_tokens=200
        )
        calls = answer.choices[0].message.tool_calls or []
        try:
            return [
                {"name": call.function.name, "arguments": json.loads(call.function.arguments)}
                for call in calls
            ]
        except json.JSONDecodeError:
            return None

    with ThreadPoolExecutor(concurrency) as pool:
        return score_turns(turns, list(pool.map(ask, turns)))


def score_turns(
    turns: list[dict[str, Any]], answers: list[list[dict[str, Any]] | None]
) -> dict[str, dict[str, float]]:
    """Return the share of turns whose calls are those expected, by kind."""
    outcomes: dict[str, list[bool]] = {}
    for turn, calls in zip(turns, answers, strict=True):
        expected = turn["expected"]
        kinds = ["all", expected["kind"]]
        if expected["calls"]:
            kinds += ["all with calls", "tool unseen in training" if expected["unseen"] else "tool seen"]
        for kind in kinds:
            outcomes.setdefault(kind, []).append(calls == expected["calls"])
    return {
        kind: {"right": round(sum(values) / len(values), 4), "turns": len(values)}
        for kind, values in outcomes.items()
    }


def calls_of(answer: str) -> list[dict[str, Any]] | None:
    """Return the calls in a raw answer as {name, arguments}; None where one is not whole."""
    calls = parse_answer(answer).calls
    if not all(call.complete for call in calls):
        return None
    return [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls]


def read_jsonl(path: Path, limit: int) -> list[Any]:
    lines = [json.loads(line) for line in path.read_text().splitlines() if line]
    return lines[:limit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--base-url", help="ask this server the tool turns instead of loading FOLDER")
    parser.add_argument("--limit", type=int, default=300)
    options = parser.parse_args()
    turns = read_jsonl(DATA / "heldout-tools.jsonl", options.limit)
    if options.base_url:
        print(json.dumps({"tools": served_tool_accuracy(options.base_url, turns)}))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(options.folder, device)
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    problems = read_jsonl(DATA / "heldout-problems.jsonl", options.limit)
    shots = read_jsonl(DATA / "fewshot-problems.jsonl", 5)
    result = {
        "problems": len(problems),
        "accuracy_0_shot": problem_accuracy(model, tokenizer, problems, []),
        "accuracy_5_shot": problem_accuracy(model, tokenizer, problems, shots),
        "tools": tool_accuracy(model, tokenizer, turns),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
