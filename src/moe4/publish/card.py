"""`moe4 card`: the model card a hub expects; every figure in it was measured, every flag is the release's.

Names in it come from the release's files, which anybody may have written: `text` and `code` make Markdown of
them.
"""

import json
import re
from pathlib import Path
from typing import Any

from moe4.deploy.manifests.grammar import is_license
from moe4.deploy.manifests.options import DeployOptions, Form, parse_source
from moe4.deploy.manifests.options import default_name as deployment_name
from moe4.deploy.manifests.write import write_deployment
from moe4.deploy.sizing.choose import Wanted, pick
from moe4.deploy.sizing.fit import Layout, check_groups
from moe4.deploy.sizing.release_size import ReleaseSize, read_release
from moe4.errors import DeployError, Moe4Error, OutputError
from moe4.escape import markdown_block
from moe4.escape import markdown_code as code
from moe4.escape import markdown_text as text
from moe4.evaluate.result_files import TaskResult, ToolcheckFile
from moe4.publish.proof import Proof
from moe4.publish.push import check_repo
from moe4.units import duration, format_bytes, percent
from moe4.vllm_facts import flags

LICENSE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "THIRD_PARTY_NOTICES.md", "NOTICE")
ARCHITECTURE = {
    "num_hidden_layers": "layers",
    "first_k_dense_replace": "of which dense",
    "hidden_size": "hidden size",
    "n_routed_experts": "routed experts a layer",
    "num_experts": "routed experts a layer",
    "num_experts_per_tok": "active for a token",
    "n_shared_experts": "shared experts",
    "moe_intermediate_size": "inner width of an expert",
    "num_attention_heads": "attention heads",
    "kv_lora_rank": "rank of the latent cache (MLA)",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "context, in tokens",
}


def render_card(proof: Proof, repo: str | None, base_model: str | None, license_name: str | None) -> str:
    """Return README.md for the hub repository `repo`; None: a placeholder's owner and the release's name.

    `base_model` and `license_name` are the hub's names; a licence that is not given is taken from the config
    or the release's licence file, and left out where neither tells. Raises OutputError for bad names.
    """
    check_names(repo, base_model, license_name)
    repo = repo or _placeholder_repo(proof.name)
    release = read_release(str(proof.folder))
    sections = [
        _front_matter(proof, repo, base_model, license_name),
        f"# {text(repo.rsplit('/', 1)[-1])}",
        _overview(proof, base_model),
        _architecture(proof),
        _evaluation(proof),
        _deployment(proof, release, repo),
        _usage(release),
        _creation(proof),
        _license(proof, license_name),
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def check_names(repo: str | None, base_model: str | None, license_name: str | None) -> None:
    """Raise OutputError for a name that the hub would not take."""
    for option, name in (("--repo", repo), ("--base-model", base_model)):
        if name is not None:
            check_repo(name, option)
    if license_name is not None and not is_license(license_name):
        raise OutputError(
            f"--license {license_name}: expected the hub's name of a licence, such as apache-2.0"
        )


def _placeholder_repo(name: str) -> str:
    """Return `your-name/NAME` with what the hub allows in a name."""
    cleaned = re.sub(r"[^A-Za-z0-9_.]+|[-.]{2,}", "-", name)[:96].strip("-._").removesuffix(".git")
    return f"your-name/{cleaned or 'release'}"


def _front_matter(proof: Proof, repo: str, base_model: str | None, license_name: str | None) -> str:
    import yaml

    head: dict[str, Any] = {}
    if base_model is not None:
        head |= {"base_model": [base_model], "base_model_relation": "quantized"}
    found = license_name or _license_name(proof)
    if found is not None:
        head["license"] = found
    head |= {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["int4", "w4a16", "compressed-tensors", "gptq", "moe", "vllm", "moe4"],
    }
    if proof.report.recipe.method != "gptq":
        head["tags"].remove("gptq")
    results = _metrics(proof)
    if results:
        head["metrics"] = sorted({entry["metrics"][0]["type"] for entry in results})
        head["model-index"] = [{"name": repo.rsplit("/", 1)[-1], "results": results}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _metrics(proof: Proof) -> list[dict[str, Any]]:
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": task, "name": f"{task} ({result.num_fewshot}-shot)"},
            "metrics": [{"type": result.metric, "value": round(100 * result.score, 2)}],
        }
        for task, result in (proof.evaluation.tasks.items() if proof.evaluation else ())
    ]


def _overview(proof: Proof, base_model: str | None) -> str:
    report, recipe = proof.report, proof.report.recipe
    before, after = report.source.num_bytes, report.release.num_bytes
    source = "its source checkpoint"
    if base_model:
        source = f"[{text(base_model)}](https://huggingface.co/{base_model})"
    targets = ", ".join(text(target.replace("_", " ")) for target in recipe.targets)
    group = text(str(recipe.group_size))
    num_fallbacks = len(report.summary.fallbacks)
    methods = {"gptq": "by GPTQ", "rtn": "by rounding to nearest", "copy": "the source's own, unchanged"}
    return f"""\
## Overview

INT4 (W4A16) quantization of {source}: {format_bytes(before)} of weights became {format_bytes(after)}
({after / before:.1%}).

| | |
| --- | --- |
| weights | INT4, symmetric, groups of {group} codes with a BF16 scale, {methods[recipe.method]} |
| activations | BF16 |
| what is quantized | {targets}; everything else is the source's own |
| format | compressed-tensors `pack-quantized`, which vLLM loads as it is |
| matrices | {report.summary.num_matrices:,}, of which {num_fallbacks} fell back to rounding |"""


def _architecture(proof: Proof) -> str:
    rows = [f"| model type | {code(str(proof.config.model_type))} |"]
    given = proof.config.text.model_dump(include=set(ARCHITECTURE), exclude_unset=True, exclude_none=True)
    rows += [f"| {what} | {given[key]:,} |" for key, what in ARCHITECTURE.items() if key in given]
    return "## Architecture\n\n| | |\n| --- | --- |\n" + "\n".join(rows)


def _evaluation(proof: Proof) -> str:
    parts = []
    tasks = proof.evaluation.tasks if proof.evaluation else {}
    if tasks:
        parts.append(
            "| task | shots | questions | before | after | recovery | 95 % interval |\n"
            "| --- | --- | --- | --- | --- | --- | --- |\n"
            + "\n".join(_task_row(name, result) for name, result in tasks.items())
        )
        parts += [
            f"{text(name)}: {text(result.change.verdict)}." for name, result in tasks.items() if result.change
        ]
    if proof.comparison is not None:
        found = proof.comparison
        parts.append(
            f"On {found.num_tokens:,} held-out tokens ({text(found.data)}): KL divergence from the "
            f"source {found.kl.mean:.5f} nats a token, likeliest token the same for "
            f"{percent(found.top1_agreement)}, perplexity {found.perplexity.source:.4f} before and "
            f"{found.perplexity.release:.4f} after."
        )
    if proof.toolcheck is not None:
        parts.append(_tool_table(proof.toolcheck))
    if not parts:
        return "## Evaluation\n\nNot measured."
    return "## Evaluation\n\n" + "\n\n".join(parts) + "\n\nMeasured with moe4; intervals are of 95 %."


def _task_row(name: str, result: TaskResult) -> str:
    change, before = result.change, result.baseline_score
    cells = [text(name), str(result.num_fewshot), f"{result.num_questions:,}"]
    cells += ["-" if before is None else percent(before), percent(result.score)]
    interval = change.recovery_interval if change else None
    cells.append(percent(change.recovery) if change and change.recovery is not None else "-")
    cells.append(f"{percent(interval[0])} to {percent(interval[1])}" if interval else "-")
    return f"| {' | '.join(cells)} |"


def _tool_table(found: ToolcheckFile) -> str:
    rows = [
        f"| {text(check.replace('_', ' '))} | {percent(measure.value, 1)} | "
        f"{percent(measure.interval[0], 1)} to {percent(measure.interval[1], 1)} |"
        for check, measure in found.release.measures.items()
        if measure
    ]
    table = f"Tool calls, {found.num_requests} requests:\n\n| check | share | interval |\n"
    table += "| --- | --- | --- |\n" + "\n".join(rows)
    if found.agreement and found.agreement.decision_agreement:
        share = percent(found.agreement.decision_agreement.value, 1)
        table += f"\n\nDecisions to call agree with the source's on {share}."
    return table


def _deployment(proof: Proof, release: ReleaseSize, repo: str) -> str:
    layout, obstacle = _layout(release)
    line = _vllm_line(release, layout, repo)
    parts = ["## Deployment", f"### vLLM\n\n{markdown_block(line, 'bash')}"]
    if obstacle:
        parts.append(f"Install moe4 beside vLLM, whose plugin this release needs on GPUs: {text(obstacle)}.")
    for form, title, language in (("podman", "podman", "bash"), ("kserve", "KServe", "yaml")):
        try:
            manifest = _manifest(release, form, repo)  # type: ignore[arg-type]
        except Moe4Error as error:
            parts.append(f"### {title}\n\nNot with this release: {text(str(error))}.")
        else:
            parts.append(f"### {title}\n\n{markdown_block(manifest, language)}")
    return "\n\n".join(parts)


def _layout(release: ReleaseSize) -> tuple[Layout, str | None]:
    """Return how the fewest GPUs hold the model, and what is wrong there without moe4's plugin."""
    try:
        return pick(release, Wanted()).layout, None
    except DeployError:
        layout = pick(release, Wanted(plugin=True)).layout
        return layout, (check_groups(release, layout) or "").partition("; ")[0]


def _vllm_line(release: ReleaseSize, layout: Layout, repo: str) -> str:
    """Return the command for one machine."""
    words = ["vllm serve", repo]
    if layout.num_gpus > 1:
        words.append(f"{flags.TENSOR_PARALLEL} {layout.num_gpus}")
    if release.uses_kimi_calls:
        words.append(f"{flags.AUTO_TOOLS} {flags.TOOL_PARSER} {flags.KIMI_PARSER}")
    if release.needs_own_code:
        words.append(flags.TRUST_REMOTE_CODE)
    return " ".join(words)


def _manifest(release: ReleaseSize, form: Form, repo: str) -> str:
    options = DeployOptions(
        form=form,
        name=deployment_name(release),
        source=parse_source(f"hf://{repo}"),
        trust_remote_code=release.needs_own_code,
    )
    return write_deployment(options, release, pick(release, Wanted()))


def _usage(release: ReleaseSize) -> str:
    chat = """\
## Usage

```python
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "Who are you?"}]
answer = client.chat.completions.create(model=model, messages=messages)
print(answer.choices[0].message.content)
```"""
    if not release.uses_kimi_calls:
        return chat
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
    return f"""\
{chat}

Tool calls. An answer to a call must carry the call's id unchanged (`functions.NAME:IDX`):

```python
tools = [{json.dumps(tool)}]
messages = [{{"role": "user", "content": "What is the weather in Oslo?"}}]
answer = client.chat.completions.create(model=model, messages=messages, tools=tools)
for call in answer.choices[0].message.tool_calls:
    print(call.id, call.function.name, call.function.arguments)
```"""


def _creation(proof: Proof) -> str:
    report = proof.report
    timing, calibration = report.timing, report.calibration
    method = f'method = "{report.recipe.method}"'
    lines = [f"moe4 {text(report.versions['moe4'])}, {code(method)}."]
    if calibration:
        lines.append(
            f"Calibration: {text(calibration.data)}, {calibration.num_sequences:,} sequences, "
            f"{calibration.num_tokens:,} tokens."
        )
    if timing and timing.seconds:
        memory = f", at most {format_bytes(timing.peak_memory_bytes)} of memory"
        lines.append(f"It took {duration(timing.seconds)}{memory if timing.peak_memory_bytes else ''}.")
    lines.append("`moe4-report.json` has the resolved recipe, every matrix's error and every file's SHA-256.")
    versions = ", ".join(f"{text(name)} {text(version)}" for name, version in report.versions.items())
    return "## Creation\n\n" + "\n".join(lines) + f"\n\nVersions: {versions}."


def _license_name(proof: Proof) -> str | None:
    found = proof.config.document.get("license")
    if isinstance(found, str) and is_license(found):
        return found
    for name in LICENSE_FILES[:4]:
        if (proof.folder / name).is_file():
            head = (proof.folder / name).read_text(encoding="utf-8", errors="replace")[:400]
            if "Apache License" in head:
                return "apache-2.0"
            return "mit" if head.lstrip().startswith("MIT License") else "other"
    return None


def _license(proof: Proof, license_name: str | None) -> str:
    files = [name for name in LICENSE_FILES if (proof.folder / name).is_file()]
    found = license_name or _license_name(proof)
    if not files and found is None:
        return ""
    section = "## Licence\n\nThe source's licence holds for this release"
    section += f" ({code(found)})." if found else "."
    if files:
        links = ", ".join(f"[{name}]({name})" for name in files)
        section += f" The source's files come with it, byte for byte: {links}."
    return section


def card_path(out: Path) -> Path:
    """Return where the card lies in a release."""
    return out / "README.md"
