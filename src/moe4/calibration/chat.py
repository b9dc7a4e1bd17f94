"""A document's token ids, rendered as vLLM renders a chat that it is sent.

vLLM reads messages before the template does: of each it keeps what OpenAI's API defines, joins parts of text
unless the template takes a list, calls null content empty and gives a developer's words to the system where
the template knows no developer. Tools lose keys that the API does not define. The tests compare the two over
templates of several families.
"""

import datetime
from typing import Any

from moe4.calibration.content_format import loops_over_content
from moe4.calibration.formats import Document
from moe4.errors import CalibrationError
from moe4.strict_json import JsonObject

Message = JsonObject

A_DAY = datetime.datetime(2025, 1, 1)  # what a chat template that asks for the date is told
DEVELOPER = "developer"


def tokenize(
    tokenizer: Any, document: Document, where: str, *, add_generation_prompt: bool = False
) -> list[int]:
    """Return one document's token ids, every day the same. Raises CalibrationError if a template refuses it.

    add_generation_prompt: whether a chat ends with the start of the assistant's next turn.
    """
    try:
        if "text" in document:
            ids = tokenizer(document["text"])["input_ids"]
        else:
            ids = tokenizer.apply_chat_template(
                to_conversation(tokenizer, document["messages"]),
                tools=to_tools(document.get("tools")),
                add_generation_prompt=add_generation_prompt,
                tokenize=True,
                return_dict=False,
                strftime_now=A_DAY.strftime,
            )
    except MemoryError:
        raise
    except Exception as error:  # a template is code that comes with the model; it may raise anything
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise CalibrationError(
            f"{where}: the model's chat template refuses this document, as a server would: {reason}"
        ) from error
    if not ids:
        raise CalibrationError(f"{where}: the document has no tokens")
    return [int(token) for token in ids]


def to_conversation(tokenizer: Any, messages: list[Message]) -> list[Message]:
    """Return messages as vLLM hands them to the chat template."""
    conversation = [_to_turn(tokenizer, message) for message in messages]
    if any(turn["role"] == DEVELOPER for turn in conversation) and not _knows_developers(tokenizer):
        conversation = _merge_system(
            [{**turn, "role": "system"} if turn["role"] == DEVELOPER else turn for turn in conversation]
        )
    return conversation


def to_tools(tools: list[JsonObject] | None) -> list[JsonObject] | None:
    """Return tools as vLLM hands them to the chat template: with the keys of OpenAI's API, in its order."""
    if tools is None:
        return None
    return [{"type": "function", "function": _to_function(tool["function"])} for tool in tools]


def _to_function(function: JsonObject) -> JsonObject:
    strict = {"strict": function["strict"]} if function.get("strict") is not None else {}
    return {**{key: function.get(key) for key in ("name", "description", "parameters")}, **strict}


def _to_turn(tokenizer: Any, message: Message) -> Message:
    role, content = message["role"], message.get("content")
    turn: Message = {"role": role, "content": "" if content is None else content}
    if isinstance(content, list) and (role == "tool" or not _takes_parts(tokenizer, role)):
        turn["content"] = join_parts(content)
    if role == "assistant":
        if message.get("tool_calls"):
            turn["tool_calls"] = [_to_call(call) for call in message["tool_calls"]]
        reasoning = message.get("reasoning")
        reasoning = message.get("reasoning_content") if reasoning is None else reasoning
        if reasoning is not None:
            turn |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if role == "tool" and "tool_call_id" in message:
        turn["tool_call_id"] = message["tool_call_id"]
    if isinstance(message.get("name"), str):
        turn["name"] = message["name"]
    return turn


def _to_call(call: JsonObject) -> JsonObject:
    """Return a call whose arguments are an object: OpenAI's API has none for a call without any."""
    return {**call, "function": {**call["function"], "arguments": call["function"].get("arguments") or {}}}


def join_parts(content: Any) -> str:
    """Return the text of a message's content, its parts joined by newlines."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""


def _takes_parts(tokenizer: Any, role: str) -> bool:
    """Say whether the chat template takes a list of parts as the content of a role's message.

    Where vLLM would hand it one and it would write the list itself, words are better than a server's mistake.
    """
    if not loops_over_content(str(tokenizer.get_chat_template())):
        return False
    text = "parts"
    first = [] if role in ("system", DEVELOPER, "user") else [{"role": "user", "content": "a question"}]
    chats = [
        [*first, {"role": role, "content": content}] for content in (text, [{"type": "text", "text": text}])
    ]
    try:
        whole, apart = (
            tokenizer.apply_chat_template(chat, tokenize=False, strftime_now=A_DAY.strftime) for chat in chats
        )
    except MemoryError:
        raise
    except Exception:  # it does something with a string that a list cannot
        return False
    return bool(whole == apart)


def _knows_developers(tokenizer: Any) -> bool:
    template = str(tokenizer.get_chat_template())
    return f'"{DEVELOPER}"' in template or f"'{DEVELOPER}'" in template


def _merge_system(conversation: list[Message]) -> list[Message]:
    """Return a conversation with all the system's words in its first turn."""
    system = [turn for turn in conversation if turn["role"] == "system"]
    if len(system) == 1 and conversation[0]["role"] == "system":
        return conversation
    words = [text for turn in system if (text := join_parts(turn["content"]))]
    others = [turn for turn in conversation if turn["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(words)}, *others]
