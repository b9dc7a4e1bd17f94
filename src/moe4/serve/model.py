"""What `moe4 serve` must know of a model before it starts vLLM; its faults become one line here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe4.checkpoint.files import read_json_object, read_text
from moe4.checkpoint.index import CONFIG_NAME, CheckpointIndex
from moe4.errors import CheckpointError, UnsupportedModelError
from moe4.model.inventory import (
    expert_width,
    kv_bytes_per_token,
    list_tensors,
    num_routed_experts,
    w4a16_group_size,
)

KIMI_CALL_TOKEN = "<|tool_calls_section_begin|>"
JOURNAL = Path(".moe4") / "journal.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A checkpoint's facts that decide vLLM's options.

    expert_width: the routed experts' inner width; None for a dense model.
    group_size: that of a W4A16 release; None for other weights.
    num_heads: of attention. num_kv_heads: those of keys and values; None for MLA, whose cache is not split.
    dense_widths, shared_widths: the different inner widths of dense layers and of shared experts.
    kv_bytes_per_token: of all layers, in BF16.
    uses_kimi_calls: the chat template writes tool calls in Kimi's form.
    needs_own_code: the tokenizer comes as Python code.
    """

    folder: Path
    name: str
    max_position_embeddings: int
    expert_width: int | None
    group_size: int | None
    num_heads: int
    num_kv_heads: int | None
    dense_widths: tuple[int, ...]
    shared_widths: tuple[int, ...]
    kv_bytes_per_token: int
    uses_kimi_calls: bool
    needs_own_code: bool


def read_served_model(folder: Path) -> ServedModel:
    """Read a release or a plain checkpoint from `folder`; its shards' headers are checked, their data is not.

    Raises CheckpointError or one of its children.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a release")
    if (folder / JOURNAL).is_file():
        raise CheckpointError(
            f"{folder} holds an unfinished release; finish it with the command that began it and --resume"
        )
    config = CheckpointIndex(folder).config
    if not isinstance(config.get("architectures"), list):
        raise CheckpointError(f"{folder / CONFIG_NAME} names no architecture; is it a language model?")
    tokenizer = folder / "tokenizer_config.json"
    tokenizer_config = read_json_object(tokenizer) if tokenizer.is_file() else {}
    heads = int(config.get("num_attention_heads") or 1)
    dense, shared = _other_widths(config)
    return ServedModel(
        folder=folder,
        name=folder.resolve().name,
        max_position_embeddings=int(config.get("max_position_embeddings") or 4096),
        expert_width=expert_width(config) if num_routed_experts(config) else None,
        group_size=w4a16_group_size(config),
        num_heads=heads,
        num_kv_heads=None if config.get("kv_lora_rank") else int(config.get("num_key_value_heads") or heads),
        dense_widths=dense,
        shared_widths=shared,
        kv_bytes_per_token=kv_bytes_per_token(config),
        uses_kimi_calls=writes_kimi_calls(folder, config, tokenizer_config),
        needs_own_code=tokenizer_needs_own_code(folder, tokenizer_config),
    )


def _other_widths(config: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the inner widths of dense layers and of shared experts; none for a family moe4 does not know."""
    try:
        tensors = [t for t in list_tensors(config) if t.name.endswith(".down_proj.weight")]
    except UnsupportedModelError:
        return (), ()
    others = [t for t in tensors if not t.is_routed_expert]
    shared = {t.shape[1] for t in others if ".shared_expert" in t.name}
    dense = {t.shape[1] for t in others if ".shared_expert" not in t.name}
    return tuple(sorted(dense)), tuple(sorted(shared))


def tokenizer_needs_own_code(folder: Path, tokenizer_config: dict[str, Any]) -> bool:
    """Say whether the tokenizer comes as Python code and in no other form."""
    is_code = "AutoTokenizer" in (tokenizer_config.get("auto_map") or {})
    return is_code and not (folder / "tokenizer.json").is_file()


def writes_kimi_calls(folder: Path | None, config: dict[str, Any], tokenizer_config: dict[str, Any]) -> bool:
    """Say whether the chat template, or else the model's kind, writes tool calls in Kimi's form."""
    template = folder / "chat_template.jinja" if folder else None
    if template is not None and template.is_file():
        text = read_text(template)
    else:
        text = str(tokenizer_config.get("chat_template") or "")
    return KIMI_CALL_TOKEN in text if text else config.get("model_type") == "kimi_k2"
