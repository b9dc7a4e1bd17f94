"""Kimi's tokenizer without its code: the ids of tiktoken, and refusal where the code is another."""

import base64
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from moe4.calibration.kimi_code import PATTERN, read_kimi_code
from moe4.calibration.tokenizer import load_tokenizer
from moe4.errors import CalibrationError

# As Kimi-K2's tokenization_kimi.py has it, written out: the constant under test is put together from parts.
PIECES = [
    r"""[\p{Han}]+""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""",
    r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
    r"""\s*[\r\n]+""",
    r"""\s+(?!\S)""",
    r"""\s+""",
]
CODE = """
import nowhere_to_be_found
raise SystemExit("this code was run")

class TikTokenTokenizer(PreTrainedTokenizer):
    num_reserved_special_tokens = 256
    pat_str = "|".join([{pieces}])

    def __init__(self, vocab_file, added_tokens_decoder=None, **kwargs):
        base = len(load_tiktoken_bpe(vocab_file))
        reserved = range(base, base + self.num_reserved_special_tokens + 2)
        self.model = tiktoken.Encoding(name="k", pat_str=self.pat_str, mergeable_ranks=r, special_tokens=s)

    def encode(self, text, **kwargs):
        ids = []
        for piece in self.pre_tokenizer_process(text):
            ids.extend(self.model.encode(piece, allowed_special="all"))
        return ids

    def pre_tokenizer_process(self, text):
        return [text]

    def _tokenize(self, text, **kwargs):
        return [self.decoder[t] for t in self.encode(text)]

    def apply_chat_template(self, conversation, tools=None, tokenize=False, thinking=True, **kwargs):
        tools = deep_sort_dict(tools)
        return super().apply_chat_template(conversation, tools=tools, thinking=thinking, **kwargs)
"""
TEXT = (
    "The quick brown fox isn't over-JUMPING the lazy dogs; we'll see, THEY'LL see. CamelCase, snake_case.\n\n"
    "中文English混合 汉字abc 北京市 Pascal 1234567890 3.14159 ñandú Ünïcödé été\tword\r\n   spaced   out   \n"
    "aaa aaaa aaaaa aaaaaa banana bananas ананас ￥100 👩‍🚀 e\u0301clair ﬁn\u00a0x"
)
NAMED = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_middle|>", 255: "[PAD]"}


def train(num_merges: int) -> dict[bytes, int]:
    """Return a byte-level vocabulary of short strings that are frequent in TEXT, whatever splits it."""
    ranks = {bytes((byte,)): byte for byte in range(256)}
    pieces = [bytes((byte,)) for byte in (TEXT * 2).encode()]
    for rank in range(256, 256 + num_merges):
        pairs = Counter(pairwise(pieces))
        left, right = next(
            (a, b) for (a, b), _ in pairs.most_common() if len(a + b) < 7 and a + b not in ranks
        )
        ranks[left + right] = rank
        merged: list[bytes] = []
        for piece in pieces:
            if merged and (merged[-1], piece) == (left, right):
                merged[-1] = left + right
            else:
                merged.append(piece)
        pieces = merged
    return ranks


RANKS = train(120)
BASE = len(RANKS)
SPECIAL = {NAMED.get(number, f"<|reserved_token_{number + BASE}|>"): number + BASE for number in range(258)}
ORACLE = tiktoken.Encoding("k", pat_str="|".join(PIECES), mergeable_ranks=RANKS, special_tokens=SPECIAL)


def write_kimi(folder: Path, code: str | None = None, **changes: Any) -> Path:
    """Write a tokenizer as Kimi's checkpoints have it; `code` of None is the usual one, "" is none."""
    lines = [base64.b64encode(token) + f" {rank}\n".encode() for token, rank in RANKS.items()]
    (folder / "tiktoken.model").write_bytes(b"".join(lines))
    if code != "":
        usual = CODE.format(pieces=", ".join(f'r"""{piece}"""' for piece in PIECES))
        (folder / "tokenization_kimi.py").write_text(usual if code is None else code)
    tokens = {str(number + BASE): {"content": text, "special": True} for number, text in NAMED.items()}
    config = {
        "tokenizer_class": "TikTokenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "added_tokens_decoder": tokens,
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "pad_token": "[PAD]",
        "model_max_length": 1000000000000000019884624838656,
        "chat_template": "{{ tools | tojson }}{{ thinking }}{% for m in messages %}<|im_user|>{{ m.content }}"
        "<|im_end|>{% endfor %}",
        **changes,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_the_pattern_is_kimis() -> None:
    assert "|".join(PIECES) == PATTERN


def test_the_ids_are_tiktokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_kimi(tmp_path), None)
    cuts = [TEXT[start : start + length] for start in range(0, len(TEXT), 3) for length in (1, 7, 60)]
    for text in [TEXT, *cuts, "<|im_user|>a<|im_middle|> b<|im_end|>\n[EOS]<|reserved_token_400|>"]:
        expected = ORACLE.encode(text, allowed_special="all")
        assert tokenizer(text)["input_ids"] == expected
        assert tokenizer.decode(expected) == text


def test_long_runs_are_cut_as_the_code_cuts_them(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_kimi(tmp_path), None)
    text = "a" * 25_000 + "aab " + " " * 30_000 + "b"
    expected = [
        *ORACLE.encode("a" * 25_000),
        *ORACLE.encode("aab" + " " * 25_000),
        *ORACLE.encode(" " * 5_001 + "b"),
    ]
    assert tokenizer(text)["input_ids"] == expected


def test_chats_are_rendered_as_the_code_renders_them(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_kimi(tmp_path), None)
    tools = [{"type": "function", "function": {"name": "f", "description": "d"}}]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tools=tools, tokenize=False)
    assert text == (
        '[{"function": {"description": "d", "name": "f"}, "type": "function"}]True<|im_user|>hi<|im_end|>'
    )


def test_kimis_vocabulary_without_its_code_is_read_too(tmp_path: Path) -> None:
    folder = write_kimi(tmp_path, "")
    assert load_tokenizer(folder, None)("Hello you")["input_ids"] == ORACLE.encode("Hello you")
    write_kimi(tmp_path, "", auto_map=None)
    assert load_tokenizer(folder, None)("Hello you")["input_ids"] == ORACLE.encode("Hello you")


USUAL = CODE.format(pieces=", ".join(f'r"""{piece}"""' for piece in PIECES))
OTHER_CODE = {
    "another pattern": USUAL.replace("1,3", "1,4"),
    "a pattern of no literal": USUAL.replace('"|".join(', "make_pattern("),
    "two patterns": USUAL.replace("pat_str=self.pat_str", 'pat_str=r"."'),
    "no class": "x = 1",
    "no Python": "class (",
    "lower case": USUAL.replace("return [text]", "return [text.lower()]"),
    "cut text": USUAL.replace("return [text]", "return [text[1:]]"),
    "something put before": USUAL.replace("self.encode(text)]", 'self.encode(" " + text)]'),
    "normalized": USUAL.replace("self.encode(text)]", "self.encode(normalize(text))]"),
}


@pytest.mark.parametrize("code", OTHER_CODE.values(), ids=OTHER_CODE)
def test_other_code_is_not_stood_in_for(tmp_path: Path, code: str) -> None:
    with pytest.raises(CalibrationError, match=r"Python code .* trust_remote_code=True runs it") as caught:
        load_tokenizer(write_kimi(tmp_path, code), None)
    assert "\n" not in str(caught.value)


def test_tools_in_typescript_need_the_code_where_the_template_has_them(tmp_path: Path) -> None:
    code = USUAL.replace(
        "return super()", "tools_ts_str = encode_tools_to_typescript_style(tools)\n        return super()"
    )
    write_kimi(tmp_path, code)
    assert read_kimi_code(tmp_path, "{{ tools | tojson }}").sorts_tools
    write_kimi(tmp_path, code, chat_template="{{ tools_ts_str }}")
    with pytest.raises(
        CalibrationError, match="the chat template needs its encode_tools_to_typescript_style"
    ):
        load_tokenizer(tmp_path, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoTokenizer": ["tokenization_other.TikTokenTokenizer", None]}},
        {"auto_map": {"AutoTokenizer": "someone/else--tokenization_kimi.TikTokenTokenizer"}},
        {"auto_map": ["tokenization_kimi.AnotherTokenizer", None]},
    ],
)
def test_another_class_over_such_a_vocabulary_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CalibrationError, match="trust_remote_code=True runs it"):
        load_tokenizer(write_kimi(tmp_path, **changes), None)


def test_a_class_that_config_json_names_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.Own", None]}}))
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CalibrationError, match=r"own\.Own in auto_map"):
        load_tokenizer(tmp_path, None)


def test_a_vocabulary_alone_is_refused(tmp_path: Path) -> None:
    write_kimi(tmp_path, "", auto_map=None, tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(CalibrationError, match="does not say how text is split"):
        load_tokenizer(tmp_path, None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must give 0 byte strings"),
        (b"not base64! 3\n", r"tiktoken\.model:1 must be a base64 string and its rank"),
        (b"YQ== 0\nYQ== 1\n", "the ranks from 0, each once"),
        (b"YQ== 0\nYg== 2\n", "the ranks from 0, each once"),
        (b"YQ== 0\nYg== 1\n", "has no rank for the byte 0"),
    ],
)
def test_a_damaged_vocabulary_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    write_kimi(tmp_path)
    (tmp_path / "tiktoken.model").write_bytes(data)
    with pytest.raises(CalibrationError, match=message):
        load_tokenizer(tmp_path, None)


def test_other_code_runs_where_it_may(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be loaded"):
        load_tokenizer(write_kimi(tmp_path, OTHER_CODE["cut text"]), None, trust_remote_code=True)
    tokenizer = load_tokenizer(write_kimi(tmp_path), None, trust_remote_code=True)
    assert tokenizer("Hello you")["input_ids"] == ORACLE.encode("Hello you")
