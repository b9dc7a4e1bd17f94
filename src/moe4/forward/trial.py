"""Whether a family that is not listed can be run one layer at a time: tried on a small random model of it.

The config's sizes are made small, transformers runs the whole model on a few tokens, moe4 runs it layer by
layer from the checkpoint that transformers saves, and the two must agree.
"""

import copy
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe4.arguments import argument
from moe4.config import ModelConfig
from moe4.errors import CheckpointError, UnsupportedModelError
from moe4.forward.stream import Stream
from moe4.forward.weights import open_model
from moe4.model.skeleton import build_config, find_class

NUM_LAYERS = 4
TOLERANCE = 1e-3  # of log-probabilities in float32; a wrong norm or route moves them by far more
MOST_ELEMENTS = 1 << 29  # 2 GiB in float32
LAST_TOKEN = 63
SEQUENCES = ([5, 9, 2, 7, 1, 3, 8, 6, 4, 11, 10, 12], [3, 1, 2])
FEW: dict[str, int] = {
    "num_hidden_layers": NUM_LAYERS,
    "num_layers": NUM_LAYERS,
    "vocab_size": LAST_TOKEN + 1,
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "first_k_dense_replace"), 1),
    "num_nextn_predict_layers": 0,
}
NARROW: dict[str, int] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "shared_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_intermediate_size": 32,
}
SMALL_HEADS: dict[str, int] = {
    "num_attention_heads": 4,
    "head_dim": 32,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 32),
}
ATTEMPTS = ({**FEW, **NARROW, **SMALL_HEADS}, {**FEW, **NARROW}, FEW)
"""From the smallest; the first that transformers can run counts."""


def try_family(config: ModelConfig) -> None:
    """Raise UnsupportedModelError unless moe4 runs a small model of this config as transformers does."""
    if not config.is_tried:
        return
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="moe4-family-") as folder:
        warnings.simplefilter("ignore")
        expected = _run_whole(config, Path(folder))
        try:
            found = _run_by_layer(Path(folder))
        except (CheckpointError, RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise _refusal(config, str(error)) from error
    distance = max(float((ours - theirs).abs().max()) for ours, theirs in zip(found, expected, strict=True))
    if not distance < TOLERANCE:
        raise _refusal(config, f"its log-probabilities are {distance:.3g} off transformers' own")


def _refusal(config: ModelConfig, reason: str) -> UnsupportedModelError:
    line = " ".join(reason.split())
    return UnsupportedModelError(
        f"{config.where}: {argument('family_as_is')}: moe4 cannot run a small random "
        f"{config.model_type} layer by layer: "
        f"{line}"
    )


def _run_whole(config: ModelConfig, folder: Path) -> list[Tensor]:
    """Save a small random model; return transformers' log-probabilities [tokens, vocabulary] of SEQUENCES."""
    reason = ""
    for sizes in ATTEMPTS:
        document = _shrunk(config.document, sizes)
        try:
            model = _random_model(config, document)
            with torch.inference_mode():
                logits = [
                    model(torch.tensor([list(tokens)], dtype=torch.int64)).logits[0] for tokens in SEQUENCES
                ]
            if not all(bool(torch.isfinite(values).all()) for values in logits):
                raise ValueError("its answers hold NaN or Inf")
            model.save_pretrained(folder)
            (folder / "generation_config.json").unlink(missing_ok=True)  # of the large model
        except Exception as error:  # a config may ask for anything
            reason = reason or str(error)
            continue
        return [torch.log_softmax(values.float(), -1) for values in logits]
    raise _refusal(config, reason)


def _random_model(config: ModelConfig, document: dict[str, Any]) -> Any:
    small = build_config(config, document)
    kind = find_class(small, config.architectures)
    with torch.device("meta"):
        elements = sum(tensor.numel() for tensor in kind(copy.deepcopy(small)).parameters())
    if elements > MOST_ELEMENTS:
        raise ValueError(f"the smallest model of this config has {elements:,} parameters, too many to try")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # the caller's own random numbers go on
        torch.default_generator.manual_seed(0)
        model = kind._from_config(small, dtype=torch.float32).eval()
        for tensor in model.parameters():
            if tensor.ndim > 1:
                tensor.normal_(0, tensor.shape[-1] ** -0.5)
            else:
                tensor += 0.1 * torch.randn_like(tensor)
    return model


def _shrunk(document: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    """Return a config with smaller sizes; lists that have an entry for each layer keep one of each kind."""
    found = copy.deepcopy(document)
    for part in (found, found.get("text_config")):
        if not isinstance(part, dict):
            continue
        lists = _lists_of_layers(part)
        kept = _layers_of_each_kind(list(zip(*lists.values(), strict=True)) if lists else [])
        for name, value in part.items():
            if name in lists:
                chosen = [value[layer] for layer in kept]
                part[name] = "".join(chosen) if isinstance(value, str) else chosen
            elif type(value) is int and value > sizes.get(name, value):
                part[name] = sizes[name]
            elif name.endswith("token_id"):
                part[name] = None if value is None else LAST_TOKEN
            elif name == "num_key_value_heads" and type(value) is int and "num_attention_heads" in sizes:
                part[name] = 4 if value == document.get("num_attention_heads", value) else 2
        if lists:
            part["num_hidden_layers"] = len(kept)
    return found


def _lists_of_layers(config: dict[str, Any]) -> dict[str, list[Any] | str]:
    """Return what has an entry for each layer: lists, and patterns of a character for each."""
    kinds = config.get("layers_block_type")
    count = config.get("num_hidden_layers") or config.get("num_layers") or len(kinds or ())
    return {
        name: value
        for name, value in config.items()
        if (isinstance(value, list) or (isinstance(value, str) and name.endswith("pattern")))
        and len(value) == count
    }


def _layers_of_each_kind(kinds: list[tuple[Any, ...]]) -> list[int]:
    """Return the numbers of the first layers, and the first of each kind after them."""
    seen: list[str] = []
    chosen = []
    for number, kind in enumerate(kinds):
        text = json.dumps(kind, default=str)
        if number < NUM_LAYERS or text not in seen:
            chosen.append(number)
        seen.append(text)
    return chosen


def _run_by_layer(folder: Path) -> list[Tensor]:
    """Return moe4's log-probabilities [tokens, vocabulary] of SEQUENCES."""
    weights, network = open_model(folder, torch.float32, family_as_is=True)
    stream = Stream(weights, network, SEQUENCES, None, torch.device("cpu"))
    stream.embed()
    for layer in range(network.num_layers):
        stream.run_layer(layer)
    rows_of = torch.arange(stream.num_tokens)
    return list(torch.split(stream.head()(rows_of), [len(tokens) for tokens in SEQUENCES]))
