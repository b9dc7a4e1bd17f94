"""What a model card says, section by section; every figure was measured, every flag is the release's.

Names in it come from the release's files, which anybody may have written: `text` and `code` make Markdown of
them.
"""

import json
import re
from dataclasses import dataclass

from moe4.arguments import argument
from moe4.checkpoint.report_file import ReportedSource
from moe4.deploy.manifests.grammar import is_license
from moe4.deploy.manifests.options import DeployOptions, Form, parse_source
from moe4.deploy.manifests.options import default_name as deployment_name
from moe4.deploy.manifests.write import write_deployment
from moe4.deploy.sizing.choose import Wanted, pick
from moe4.deploy.sizing.release_size import ReleaseSize, read_release
from moe4.errors import Moe4Error, OutputError
from moe4.escape import markdown_block
from moe4.escape import markdown_code as code
from moe4.escape import markdown_text as text
from moe4.files.regular import open_regular, read_exactly
from moe4.publish.card_evaluation import evaluation, metrics
from moe4.publish.commands import (
    choose_layout,
    prove_command,
    quantize_command,
    recipe_toml,
    vllm_command,
)
from moe4.publish.proof import Proof
from moe4.publish.push import check_repo
from moe4.strict_json import JsonObject
from moe4.units import duration, format_bytes

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


@dataclass(frozen=True, kw_only=True, slots=True)
class CardNames:
    """The hub's names in a card; None for one that is not given.

    repo: of the release; `your-name/` and the folder's name stand in for it. license_name: what the config or
    the release's licence file tells stands in for it, or nothing.
    """

    repo: str | None = None
    base_model: str | None = None
    license_name: str | None = None

    def check(self) -> None:
        """Raise OutputError for a name that the hub would not take."""
        for which, name in (("repo", self.repo), ("base_model", self.base_model)):
            if name is not None:
                check_repo(name, argument(which, name))
        if self.license_name is not None and not is_license(self.license_name):
            raise OutputError(
                f"{argument('license_name', self.license_name)}: expected the hub's name of a licence, "
                "such as apache-2.0"
            )

    def repo_for(self, proof: Proof) -> str:
        """Return the repository, or what stands in for it."""
        return self.repo or _placeholder_repo(proof.name)


def card_sections(proof: Proof, names: CardNames) -> dict[str, str]:
    """Return the card's sections by name, in their order; each begins with its heading."""
    repo = names.repo_for(proof)
    release = read_release(str(proof.folder))
    sections = {
        "title": f"# {text(repo.rsplit('/', 1)[-1])}",
        "overview": _overview(proof, repo, names),
        "deployment": f"{_deployment(release, repo)}\n\n{_usage(release)}",
        "creation": _creation(proof),
        "evaluation": evaluation(proof),
        "reproducibility": _reproducibility(proof),
        "licence": _license(proof, names.license_name),
    }
    return {name: section.strip() for name, section in sections.items() if section}


def _placeholder_repo(name: str) -> str:
    """Return `your-name/NAME` with what the hub allows in a name."""
    cleaned = re.sub(r"[^A-Za-z0-9_.]+|[-.]{2,}", "-", name)[:96].strip("-._").removesuffix(".git")
    return f"your-name/{cleaned or 'release'}"


def front_matter(proof: Proof, names: CardNames) -> JsonObject:
    """Return what the hub reads of the card."""
    head: JsonObject = {}
    if names.base_model is not None:
        head |= {"base_model": [names.base_model], "base_model_relation": "quantized"}
    found = names.license_name or _license_name(proof)
    if found is not None:
        head["license"] = found
    head |= {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["int4", "w4a16", "compressed-tensors", "gptq", "moe", "vllm", "moe4"],
    }
    if proof.report.recipe.method != "gptq":
        head["tags"].remove("gptq")
    results = metrics(proof)
    if results:
        head["metrics"] = sorted({entry["metrics"][0]["type"] for entry in results})
        head["model-index"] = [{"name": names.repo_for(proof).rsplit("/", 1)[-1], "results": results}]
    return head


def _overview(proof: Proof, repo: str, names: CardNames) -> str:
    report, recipe = proof.report, proof.report.recipe
    before, after = report.source.num_bytes, report.release.num_bytes
    source = "its source checkpoint"
    if names.base_model:
        source = f"[{text(names.base_model)}](https://huggingface.co/{names.base_model})"
    targets = ", ".join(text(target.replace("_", " ")) for target in recipe.targets)
    group = text(str(recipe.group_size))
    methods = {"gptq": "by GPTQ", "rtn": "by rounding to nearest", "copy": "the source's own, unchanged"}
    lines = [
        f"- **Model Architecture:** {_architecture_name(proof)}",
        "  - **Input:** Text",
        "  - **Output:** Text",
        "- **Model Optimizations:**",
        "  - **Weight quantization:** INT4",
        "  - **Activation quantization:** None",
    ]
    if proof.runs:
        lines.append(f"- **Release Date:** {proof.runs[-1].date[:10]}")
    if names.repo:
        lines.append(f"- **Model Developers:** {text(repo.partition('/')[0])}")
    overview = "\n".join(lines)
    return f"""\
## Model Overview

{overview}

### Model Optimizations

This model is {source} with its weights quantized to INT4 (W4A16):
{format_bytes(before)} of weights became {format_bytes(after)}
({after / before:.1%}).

| | |
| --- | --- |
| weights | INT4, symmetric, groups of {group} codes with a BF16 scale, {methods[recipe.method]} |
| activations | BF16 |
| what is quantized | {targets}; everything else is the source's own |
| format | compressed-tensors `pack-quantized`, which vLLM loads as it is |
| matrices | {report.summary.num_matrices:,}, of which {len(report.summary.fallbacks)} fell back to rounding |
{_quantized_again(report.source)}
{_architecture(proof)}"""


def _quantized_again(source: ReportedSource) -> str:
    """Return the row that says what the source had lost already, if it had."""
    count = sum(source.quantized_again.values())
    if not count:
        return ""
    return (
        f"| quantized again | {count:,} matrices are codes of at most 8 bits in the source; errors are given "
        "against those, not against what they were made of |\n"
    )


def _architecture_name(proof: Proof) -> str:
    """Return the class that the config names, or the model's type."""
    found = proof.config.document.get("architectures")
    if isinstance(found, list) and found and isinstance(found[0], str):
        return text(found[0])
    return text(str(proof.config.model_type))


def _architecture(proof: Proof) -> str:
    rows = [f"| model type | {code(str(proof.config.model_type))} |"]
    given = proof.config.text.model_dump(include=set(ARCHITECTURE), exclude_unset=True, exclude_none=True)
    rows += [f"| {what} | {given[key]:,} |" for key, what in ARCHITECTURE.items() if key in given]
    return "### Architecture\n\n| | |\n| --- | --- |\n" + "\n".join(rows)


def _deployment(release: ReleaseSize, repo: str) -> str:
    layout, obstacle = choose_layout(release)
    line = vllm_command(release, layout, repo)
    parts = ["## Deployment", f"### Use with vLLM\n\n{markdown_block(line, 'bash')}"]
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
### Chat

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
    if report.tuning:
        lines.append(f"Tuned with `moe4 tune`: {text(str(report.tuning))}.")
    if timing and timing.seconds:
        memory = f", at most {format_bytes(timing.peak_memory_bytes)} of memory"
        lines.append(f"It took {duration(timing.seconds)}{memory if timing.peak_memory_bytes else ''}.")
    lines.append("`moe4-report.json` has the resolved recipe, every matrix's error and every file's SHA-256.")
    versions = ", ".join(f"{text(name)} {text(version)}" for name, version in report.versions.items())
    return "## Creation\n\n" + "\n".join(lines) + f"\n\nVersions: {versions}."


def _reproducibility(proof: Proof) -> str:
    """Return the commands that make and measure the release again, and what they ran on."""
    parts = [
        "## Reproducibility",
        "SOURCE is the source checkpoint's folder, OUT the release's. The same source, recipe, calibration\n"
        "and versions give the same bytes.",
        markdown_block(quantize_command(proof.report), "bash"),
        "with `recipe.toml`:",
        markdown_block(recipe_toml(proof.report.recipe), "toml"),
    ]
    command = prove_command(proof)
    if command is not None:
        parts += ["Measured with", markdown_block(command, "bash")]
        for machine, versions in dict.fromkeys(
            (run.machine, tuple(run.versions.items())) for run in proof.runs
        ):
            found = ", ".join(f"{text(name)} {text(version)}" for name, version in versions)
            parts.append(f"on {text(machine)}: {found}.")
        parts.append(
            "Every answer of both models, and the figures in the form of every_eval_ever, are in `proof/`."
        )
    return "\n\n".join(parts)


def _license_name(proof: Proof) -> str | None:
    found = proof.config.document.get("license")
    if isinstance(found, str) and is_license(found):
        return found
    for name in LICENSE_FILES[:4]:
        if (proof.folder / name).is_file():
            with open_regular(proof.folder / name) as file:
                head = read_exactly(file, 400).decode(errors="replace")
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
