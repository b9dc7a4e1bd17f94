"""Write docs/families.md from the tests of the families; with --check, only say whether it is up to date."""

import argparse
import ast
import sys
from pathlib import Path

from moe4.config import FAMILIES, TEXT_MODELS, families

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "families.md"
TESTS = ROOT / "tests" / "quantize" / "run"
HEAD = """# Families

`scripts/generate_families_table.py` makes this page from the tests, and `make check` compares the two. A
family is a `model_type` in config.json. For each family, a test plans a small random model, quantizes it by
GPTQ, verifies the release, and compares it in float32 with its twin: the release's weights, decoded by
compressed-tensors, as a whole model in transformers.

- **Checked** configs are read without transformers, and refused if transformers and vLLM would treat a field
  differently ([quantization.md](quantization.md#sources)). `plan` works from the config alone.
- transformers' own config class reads the others; the network and the names are transformers' too.
- **Twin in vLLM** says whether a test also compares the release's answers in vLLM on a CPU with the twin's.

moe4 tries any other family with `--family-as-is`, an option of every command that reads a model's weights.
It makes a small random model of the config, and runs it layer by layer and as a whole in transformers. If the
results differ, moe4 says so in one line and stops.

"""
MODELS = {
    "afmoe": "Trinity",
    "deepseek_v2": "DeepSeek-V2, V2-Lite",
    "deepseek_v3": "DeepSeek-V3, V3.1, R1",
    "deepseek_v32": "DeepSeek-V3.2",
    "deepseek_v4": "DeepSeek-V4",
    "dots1": "dots.llm1",
    "ernie4_5_moe": "ERNIE-4.5",
    "flex_olmo": "FlexOlmo",
    "glm4_moe": "GLM-4.5, 4.6, 4.7",
    "glm4_moe_lite": "GLM-4.7-Flash",
    "glm_moe_dsa": "GLM-5, if every layer has its own indexer",
    "gpt_oss": "gpt-oss",
    "granitemoe": "Granite 3 MoE, PowerMoE",
    "granitemoehybrid": "Granite 4",
    "hunyuan_v1_moe": "Hunyuan-A13B",
    "kimi_k2": "Kimi-K2",
    "kimi_k25": "Kimi-K2.5, K2.6; the vision tower is copied",
    "kimi_linear": "Kimi-Linear",
    "llama4": "Llama 4 Scout, Maverick; the vision tower is copied",
    "llama4_text": "Llama 4, text alone",
    "longcat_flash": "LongCat-Flash",
    "mimo_v2_flash": "MiMo-V2-Flash",
    "minimax_m2": "MiniMax-M2",
    "mistral4": "Mistral Small 4's text model",
    "mixtral": "Mixtral",
    "nemotron_h": "Nemotron 3 Nano, Super",
    "olmoe": "OLMoE",
    "phimoe": "Phi-3.5-MoE",
    "qwen2_moe": "Qwen1.5-MoE, Qwen2-MoE",
    "qwen3_5_moe": "Qwen3.5-MoE; the vision tower is copied",
    "qwen3_5_moe_text": "Qwen3.5-MoE, text alone",
    "qwen3_moe": "Qwen3-MoE",
    "qwen3_next": "Qwen3-Next",
    "qwen3_vl_moe": "Qwen3-VL-MoE; the vision tower is copied",
    "solar_open": "Solar Open",
    "step3p7": "Step-3.7-Flash; the vision tower is copied",
}
"""The models that people know a family by."""


def names_in(path: Path, variable: str) -> set[str]:
    """Return the strings in what a test module assigns to a variable."""
    for node in ast.walk(ast.parse(path.read_text())):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == variable for target in targets):
            return {
                part.value
                for part in ast.walk(node)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            }
    raise SystemExit(f"{path.name} assigns nothing to {variable}")


def render() -> str:
    tested = names_in(TESTS / "test_families.py", "FAMILIES") | {"kimi_k2", "kimi_k25"}
    tested |= families.BY_TRANSFORMERS - names_in(TESTS / "test_listed_families.py", "LISTED")
    tested |= {"qwen3_5_moe_text"}
    served = names_in(ROOT / "tests" / "vllm_plugin" / "families.py", "FAMILIES") | {"kimi_k2", "kimi_k25"}
    lines = [HEAD + "| family | models | config | plan, quantize, verify, twin | twin in vLLM |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for family in sorted({*FAMILIES, *TEXT_MODELS, *families.BY_TRANSFORMERS}):
        config = "checked" if family in FAMILIES or family in TEXT_MODELS else "transformers'"
        equal = "equal" if family in tested else "not tested"
        vllm = "equal" if family in served else "not tested"
        lines.append(f"| `{family}` | {MODELS[family]} | {config} | {equal} | {vllm} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = render()
    if not options.check:
        FILE.write_text(text)
    elif not FILE.exists() or FILE.read_text() != text:
        sys.exit(f"docs/{FILE.name} is not what the tests say; run `python scripts/{Path(__file__).name}`")


if __name__ == "__main__":
    main()
