"""One request to a chat endpoint, whole or streamed, tried again a bounded number of times."""

import asyncio
import json
import random
from dataclasses import dataclass, field

import httpx

from moe4.strict_json import JsonObject

RETRIED_STATUS = frozenset((408, 409, 429, 500, 502, 503, 504))
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 20.0
# What comes of an answer that is no JSON, or JSON of another form.
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A server and the model on it. `identity` names the weights where the address does not."""

    base_url: str
    model: str
    api_key: str | None = None
    identity: str | None = None


@dataclass(kw_only=True, slots=True)
class Reply:
    """What an endpoint answered, the same for both ways of asking.

    calls: {"id", "name", "arguments"}, the arguments as the text that came. error: why there is no answer.
    """

    finish_reason: str | None = None
    content: str = ""
    calls: list[JsonObject] = field(default_factory=list)
    usage: JsonObject | None = None
    error: str | None = None
    attempts: int = 1


async def ask(
    client: httpx.AsyncClient, endpoint: Endpoint, body: JsonObject, *, stream: bool, max_retries: int
) -> Reply:
    """Return the reply; one with `error` where the server refuses or every attempt failed."""
    sent = {**body, "model": endpoint.model, "stream": stream}
    if stream:
        sent["stream_options"] = {"include_usage": True}
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    url = f"{endpoint.base_url}/chat/completions"
    for attempt in range(1, max_retries + 2):
        wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
        try:
            async with client.stream("POST", url, json=sent, headers=headers) as response:
                if response.status_code != 200:
                    reason = _refusal(await response.aread(), response.status_code)
                    if response.status_code not in RETRIED_STATUS:
                        return Reply(error=reason, attempts=attempt)
                    wait = _wait_asked_for(response) or wait
                else:
                    reply = await (_read_stream(response) if stream else _read_whole(response))
                    _require_text(reply)
                    reply.attempts = attempt
                    return reply
        except httpx.HTTPError as error:
            reason = f"{type(error).__name__}: {error}".strip(": ")
        except UNREADABLE:
            return Reply(error="the answer is not a chat completion with its choices", attempts=attempt)
        if attempt <= max_retries:
            await asyncio.sleep(wait)
    return Reply(error=reason, attempts=attempt)


async def _read_whole(response: httpx.Response) -> Reply:
    data = json.loads(await response.aread())
    choice = data["choices"][0]
    message = choice["message"]
    calls = [
        {"id": call.get("id"), "name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        for call in message.get("tool_calls") or []
    ]
    return Reply(
        finish_reason=choice.get("finish_reason"),
        content=message.get("content") or "",
        calls=calls,
        usage=_usage(data),
    )


def _require_text(reply: Reply) -> None:
    """Raise ValueError where text is something else, or half of a surrogate pair, which no file can hold."""
    texts = [reply.finish_reason or "", reply.content, *(call["name"] for call in reply.calls)]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a finish reason, a content or a name is not text")
    json.dumps([*texts, reply.calls, reply.usage, reply.error], ensure_ascii=False).encode()


def _usage(answer: JsonObject) -> JsonObject | None:
    """Return an answer's token counts, if they have their form."""
    usage = answer.get("usage")
    return usage if isinstance(usage, dict) else None


async def _read_stream(response: httpx.Response) -> Reply:
    reply, calls = Reply(), dict[int, JsonObject]()
    ended = False
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        text = line.removeprefix("data:").strip()
        if text == "[DONE]":
            ended = True
            break
        event = json.loads(text)
        if "error" in event:
            reply.error = f"the stream broke off: {event['error']}"
            return reply
        reply.usage = _usage(event) or reply.usage
        for choice in event.get("choices") or []:
            reply.finish_reason = choice.get("finish_reason") or reply.finish_reason
            delta = choice.get("delta") or {}
            reply.content += delta.get("content") or ""
            for piece in delta.get("tool_calls") or []:
                _add_piece(calls, piece)
    if not ended:
        reply.error = "the stream ended without [DONE]"
    reply.calls = [calls[index] for index in sorted(calls)]
    return reply


def _add_piece(calls: dict[int, JsonObject], piece: JsonObject) -> None:
    call = calls.setdefault(int(piece.get("index") or 0), {"id": None, "name": "", "arguments": ""})
    function = piece.get("function") or {}
    call["id"] = piece.get("id") or call["id"]
    call["name"] += function.get("name") or ""
    call["arguments"] += function.get("arguments") or ""


def _refusal(body: bytes, status: int) -> str:
    try:
        data = json.loads(body)
        error = data.get("error", data)
        message = error.get("message") if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        message = body[:200].decode("utf-8", "replace")
    line = " ".join(str(message).split())[:300]
    return f"{status}: {line.encode(errors='replace').decode()}"


def _wait_asked_for(response: httpx.Response) -> float | None:
    """Return the server's Retry-After in seconds, as far as we follow it."""
    try:
        seconds = float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return min(LONGEST_WAIT_SECONDS, seconds) if seconds > 0 else None
