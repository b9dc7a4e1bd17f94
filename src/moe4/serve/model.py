"""What `moe4 serve` must know of a model before it starts vLLM; its faults become one line here."""

from dataclasses import dataclass
from pathlib import Path

from moe4.arguments import argument
from moe4.checkpoint.index import CONFIG_NAME, CheckpointIndex
from moe4.config import Family, ModelConfig, TextModel, TokenizerConfig, parse_tokenizer_config
from moe4.errors import CheckpointError
from moe4.files.regular import read_json_object, read_text
from moe4.hub.locate import short_name
from moe4.model.inventory import list_tensors

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
            f"{folder} holds an unfinished release; finish it with the command that began it and "
            f"{argument('resume', True)}"
        )
    config = CheckpointIndex(folder).config
    if not config.architectures:
        raise CheckpointError(f"{folder / CONFIG_NAME} names no architecture; is it a language model?")
    tokenizer = folder / "tokenizer_config.json"
    tokenizer_config = parse_tokenizer_config(
        read_json_object(tokenizer) if tokenizer.is_file() else {}, tokenizer
    )
    config.require_complete()
    text, quantization = config.text, config.quantization
    dense, shared = _other_widths(text)
    return ServedModel(
        folder=folder,
        name=short_name(folder),
        max_position_embeddings=text.max_position_embeddings or 4096,
        expert_width=text.expert_width if text.num_routed_experts else None,
        group_size=quantization.w4a16_group_size if quantization else None,
        num_heads=text.num_heads,
        num_kv_heads=None if text.kv_lora_rank else text.num_kv_heads,
        dense_widths=dense,
        shared_widths=shared,
        kv_bytes_per_token=text.kv_bytes_per_token,
        uses_kimi_calls=writes_kimi_calls(folder, config, tokenizer_config),
        needs_own_code=tokenizer_config.needs_own_code(folder),
    )


def _other_widths(text: TextModel) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the inner widths of dense layers and of shared experts; none for a family moe4 does not know."""
    if not isinstance(text, Family):
        return (), ()
    tensors = [t for t in list_tensors(text) if t.name.endswith(".down_proj.weight")]
    others = [t for t in tensors if not t.is_routed_expert]
    shared = {t.shape[1] for t in others if ".shared_expert" in t.name}
    dense = {t.shape[1] for t in others if ".shared_expert" not in t.name}
    return tuple(sorted(dense)), tuple(sorted(shared))


def writes_kimi_calls(folder: Path | None, config: ModelConfig, tokenizer_config: TokenizerConfig) -> bool:
    """Say whether the chat template, or else the model's kind, writes tool calls in Kimi's form."""
    template = folder / "chat_template.jinja" if folder else None
    if template is not None and template.is_file():
        text = read_text(template)
    else:
        text = tokenizer_config.chat_template or ""
    return KIMI_CALL_TOKEN in text if text else config.model_type == "kimi_k2"
