"""Train k2-tiny's tokenizer on its own data: `python -m k2tiny.tokenizer`.

Byte-level BPE of 2,560 tokens with Kimi-K2's special tokens. A digit is a token. A space joins the lower-case
word or the punctuation after it, but neither a capital nor a digit, so that names, codes and numbers have the
same tokens wherever they stand; a small model can then copy them from a request into a call.
"""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from k2tiny.corpus import plain_documents
from k2tiny.places import CHECKPOINT
from k2tiny.template import DEFAULT_SYSTEM_PROMPT

VOCAB_SIZE = 2560
NUM_DOCUMENTS = 12_000
SEED = 1_000_003
SPECIAL_TOKENS = (
    "[BOS]",
    "[EOS]",
    "[PAD]",
    "[UNK]",
    "<|im_end|>",
    "<|im_user|>",
    "<|im_assistant|>",
    "<|im_system|>",
    "<|im_middle|>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    *(f"<|reserved_{number}|>" for number in range(6)),
)
# In turn: a lower-case word with its space, a capitalised word, capitals, other letters, one digit,
# punctuation with its space, newlines, other white space.
PATTERN = (
    r" ?\p{Ll}+|\p{Lu}\p{Ll}+|\p{Lu}+(?!\p{Ll})|[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+|\n+|[^\S\n]+|\s+"
)


def build() -> Tokenizer:
    """Train the tokenizer; the same data give the same bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _texts() -> list[str]:
    documents = islice(plain_documents(SEED), NUM_DOCUMENTS)
    texts = []
    for document in documents:
        text = document.text
        for token in SPECIAL_TOKENS:
            text = text.replace(token, "\n")
        texts.append(text)
    random.Random(SEED).shuffle(texts)
    return texts


def tokenizer_config() -> dict[str, object]:
    """Return what AutoTokenizer needs to load the tokenizer with no remote code."""
    return {
        "added_tokens_decoder": {
            str(number): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for number, token in enumerate(SPECIAL_TOKENS)
        },
        "additional_special_tokens": [token for token in SPECIAL_TOKENS if token.startswith("<|")],
        "bos_token": "[BOS]",
        "clean_up_tokenization_spaces": False,
        "eos_token": "[EOS]",
        "model_max_length": 4096,
        "pad_token": "[PAD]",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def write(folder: Path) -> None:
    """Write tokenizer.json and the files beside it; chat_template.jinja is written by hand."""
    tokenizer = build()
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, tokenizer.get_vocab_size()
    template = (folder / "chat_template.jinja").read_text()
    assert DEFAULT_SYSTEM_PROMPT in template
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config())
    special = {"bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]"}
    others = [token for token in SPECIAL_TOKENS if token.startswith("<|")]
    _write_json(folder / "special_tokens_map.json", special | {"additional_special_tokens": others})
    generation = {
        "bos_token_id": 0,
        "do_sample": False,
        "eos_token_id": [SPECIAL_TOKENS.index("[EOS]"), SPECIAL_TOKENS.index("<|im_end|>")],
        "pad_token_id": SPECIAL_TOKENS.index("[PAD]"),
    }
    _write_json(folder / "generation_config.json", generation)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write(CHECKPOINT)
