"""Chats are rendered as vLLM renders them, over templates in the style of six families."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from model_fixtures import REFERENCE_MODEL
from transformers import PreTrainedTokenizerFast

from moe4.calibration.chat import tokenize
from moe4.calibration.content_format import loops_over_content
from moe4.calibration.formats import parse_line
from moe4.errors import CalibrationError

pytest.importorskip("vllm")

TEMPLATES = Path(__file__).parent / "templates"
FAMILIES = ("kimi_k2", "qwen3", "deepseek_v3", "glm4", "llama", "gpt_oss")
PUBLISHED_DEEPSEEK = (
    "{% for m in messages %}{% for c in m['tool_calls'] or [] %}"
    "{{ '```json\\n' + c['function']['arguments'] + '\\n```' }}{% endfor %}{% endfor %}"
)
"""DeepSeek-V3's published template puts arguments into a string: no server that parses them can render it."""

USER = {"role": "user", "content": "What is the weather in Paris?"}
PARTS = [{"type": "text", "text": "What is the weather"}, {"type": "text", "text": "in Paris?"}]
CALL = {
    "id": "functions.get_weather:0",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris", "days": [1, 2], "unit": "°C"}'},
}
EMPTY_CALL = {"id": "functions.now:1", "type": "function", "function": {"name": "now", "arguments": ""}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": CALL["id"], "content": '{"sky": "clear"}'}
ANSWER = {"role": "assistant", "content": "It is clear."}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"type": "string"}},
    "required": ["city"],
}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Say", "parameters": PARAMETERS},
}
ODD_TOOL = {
    "function": {"parameters": PARAMETERS, "strict": True, "name": "now"},
    "x-own": 1,
    "type": "function",
}
SYSTEM = {"role": "system", "content": "Be brief."}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [SYSTEM, USER, ANSWER]},
    "call": {"messages": [USER, CALLS, RESULT, ANSWER], "tools": [TOOL]},
    "call with words": {"messages": [USER, {**CALLS, "content": "Let me see."}, RESULT, ANSWER]},
    "content absent": {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT]},
    "no arguments": {"messages": [USER, {**CALLS, "tool_calls": [CALL, EMPTY_CALL]}, RESULT, ANSWER]},
    "empty calls": {"messages": [USER, {**ANSWER, "tool_calls": []}]},
    "one part": {"messages": [{"role": "user", "content": PARTS[:1]}, ANSWER]},
    "parts": {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": PARTS}]},
    "parts of a system": {"messages": [{"role": "system", "content": PARTS[:1]}, USER, ANSWER]},
    "parts of a result": {"messages": [USER, CALLS, {**RESULT, "content": PARTS}, ANSWER], "tools": [TOOL]},
    "reasoning": {"messages": [USER, {**ANSWER, "reasoning_content": "I know."}]},
    "reasoning by another name": {"messages": [USER, {**CALLS, "reasoning": "I look."}, RESULT, ANSWER]},
    "names": {
        "messages": [{**USER, "name": "Ann"}, {**CALLS, "name": "bot"}, {**RESULT, "name": "get_weather"}]
    },
    "what no server knows": {
        "messages": [{**USER, "weight": 1, "thinking": "x"}, {**ANSWER, "thinking": "x"}]
    },
    "odd tools": {"messages": [USER, ANSWER], "tools": [ODD_TOOL, TOOL]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, USER, ANSWER]},
    "developer and system": {
        "messages": [SYSTEM, {"role": "developer", "content": "No lists."}, USER, ANSWER],
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(REFERENCE_MODEL)


def render_as_vllm(tokenizer: Any, document: dict[str, Any]) -> list[int]:
    """Return the token ids that a server of vLLM gives a chat, without the start of the next turn."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.renderers import hf
    from vllm.renderers.chat_utils import parse_chat_messages

    request = ChatCompletionRequest.model_validate({"model": "m", **json.loads(json.dumps(document))})
    tools = None if request.tools is None else [tool.model_dump() for tool in request.tools]
    config: Any = SimpleNamespace(
        multimodal_config=None,
        enable_prompt_embeds=False,
        is_multimodal_model=False,
        allowed_local_media_path="",
        allowed_media_domains=None,
        hf_config=SimpleNamespace(model_type="deepseek_v3"),
        trust_remote_code=False,
    )
    template = tokenizer.get_chat_template(tools=tools)
    content_format = hf._detect_content_format(template, default="string")
    conversation, _, _ = parse_chat_messages(request.messages, config, content_format)
    found = hf.safe_apply_chat_template(
        config, tokenizer, conversation, tools=tools, chat_template=template, add_generation_prompt=False
    )
    return list(found)


def write_date_always(text: str) -> str:
    """Return a template whose date does not depend on the day."""
    return "{%- macro strftime_now(format) -%}01 Jan 2025{%- endmacro -%}" + text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CHATS)
def test_a_chat_as_vllm_renders_it(tokenizer: PreTrainedTokenizerFast, family: str, name: str) -> None:
    tokenizer.chat_template = write_date_always((TEMPLATES / f"{family}.jinja").read_text())
    document = CHATS[name]
    row = parse_line(json.dumps(document), "chat")
    expected = tokenizer.decode(render_as_vllm(tokenizer, document))
    found = tokenizer.decode(tokenize(tokenizer, row.document, "chat"))
    assert found == expected
    assert "None" not in found
    assert "{'type'" not in found
    assert '\\"city' not in found


def over(variable: str, before: str = "") -> str:
    """Return a loop over a variable in a loop over messages."""
    inner = "{% for p in " + variable + " %}{{ p.text }}{% endfor %}"
    return "{% for m in messages %}" + before + inner + "{% endfor %}"


def in_macro(head: str, variable: str, call: str) -> str:
    """Return a macro that loops over a variable, and a loop over messages that calls it."""
    macro = "{% macro " + head + " %}{% for p in " + variable + " %}{% endfor %}{% endmacro %}"
    return macro + "{% for m in messages %}{{ " + call + " }}{% endfor %}"


LOOPS = {
    "directly": over("m.content"),
    "by key": over("m['content']"),
    "by get": over("m.get('content')"),
    "filtered": over("m.content | list"),
    "of a slice": over("m.content").replace("in messages", "in messages[1:]"),
    "of another name": "{% set ms = messages[1:] %}" + over("m.content").replace("in messages", "in ms"),
    "in a macro": in_macro("f(c)", "c", "f(m.content)"),
    "in a macro by name": in_macro("f(a, c)", "c", "f(1, c=m.content)"),
    "in a macro of the message": in_macro("f(x)", "x.content", "f(m)"),
    "in a macro of a role": in_macro("f(c)", "c", "f(m.role)"),
    "over content": over("content", "{% set content = m.content %}"),
    "over content in a macro": in_macro("f(content)", "content", "f(m.role)"),
    "over another name": over("words", "{% set words = m.content %}"),
    "in a generation": "{% generation %}" + over("m.content") + "{% endgeneration %}",
    "of calls": over("m.tool_calls"),
    "with break": over("m.content").replace("{{ p.text }}", "{% break %}"),
    "broken": over("m.content")[:-12],
    **{family: (TEMPLATES / f"{family}.jinja").read_text() for family in FAMILIES},
}


@pytest.mark.parametrize("name", LOOPS)
def test_lists_of_parts_go_where_vllm_lets_them_go(name: str) -> None:
    from vllm.renderers.hf import _detect_content_format

    expected = _detect_content_format(LOOPS[name], default="string")
    assert loops_over_content(LOOPS[name]) == (expected == "openai")


def test_what_a_server_refuses_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    from vllm.exceptions import VLLMValidationError

    tokenizer.chat_template = PUBLISHED_DEEPSEEK
    with pytest.raises(VLLMValidationError):
        render_as_vllm(tokenizer, CHATS["call"])
    row = parse_line(json.dumps(CHATS["call"]), "c.jsonl:7")
    with pytest.raises(
        CalibrationError, match=r"c\.jsonl:7: the model's chat template refuses .* concatenate"
    ):
        tokenize(tokenizer, row.document, row.where)
