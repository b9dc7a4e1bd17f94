"""The first questions to a new server: is the model there, does it answer, stream and call a tool.

And, where a release's expected answers are at hand: are its numbers right.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx

from moe4.deploy.smoke_answers import Chunk, Completion, ModelList
from moe4.errors import DeployError, ProbeError
from moe4.escape import visible
from moe4.probe.ask import ask_server, describe_shortly, find_probe
from moe4.probe.check import is_address
from moe4.schema import Foreign, decode, parse

Answer = TypeVar("Answer", bound=Foreign)

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city."}},
            "required": ["city"],
        },
    },
}
HELLO = [{"role": "user", "content": "Say hello."}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
MAX_TOKENS = 32
TOOL_TOKENS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class SmokeOutcome:
    """One check: what was seen, or what was wrong."""

    name: str
    ok: bool
    seconds: float
    detail: str

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "WRONG"
        return visible(f"{self.name}: {verdict}, {self.seconds:.1f} s: {self.detail}")


class SmokeTest:
    """The checks against one server. `url` with or without `/v1`; `model` the first served if None.

    probe: the release whose answers are expected, or its moe4-probe.json.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None,
        api_key: str | None,
        timeout: float,
        verify: bool,
        probe: Path | None = None,
    ) -> None:
        base = url.rstrip("/").removesuffix("/v1") + "/v1/"
        wrong = DeployError(f"{url} is not an address; give one such as http://127.0.0.1:8000")
        if not is_address(url):
            raise wrong
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.model = model
        self._probe_file = None if probe is None else find_probe(probe)
        self._ask = partial(ask_server, url=base, key=api_key, timeout=timeout, verify=verify)
        try:
            self._client = httpx.Client(base_url=base, headers=headers, timeout=timeout, verify=verify)
        except httpx.InvalidURL:
            raise wrong from None

    def run(self) -> Iterator[SmokeOutcome]:
        """Yield the outcome of each check; nothing follows a server that does not list its models."""
        with self._client:
            first = self._time("models", self._models)
            yield first
            if first.ok:
                yield self._time("chat", self._chat)
                yield self._time("stream", self._stream)
                yield self._time("tool call", self._tool_call)
                if self._probe_file is not None:
                    yield self._time("probe", self._probe)

    def _time(self, name: str, check: Callable[[], str]) -> SmokeOutcome:
        began = time.monotonic()
        try:
            detail, ok = check(), True
        except httpx.HTTPStatusError as error:
            reason = " ".join(error.response.text.split())[:200]
            detail, ok = f"status {error.response.status_code}: {reason}", False
        except httpx.HTTPError as error:
            detail, ok = f"cannot be reached: {error or type(error).__name__}", False
        except _ForeignError as error:
            detail, ok = f"not the answer of an OpenAI-compatible server: {error}", False
        except (_UnexpectedError, ProbeError) as error:
            detail, ok = str(error), False
        return SmokeOutcome(name=name, ok=ok, seconds=time.monotonic() - began, detail=detail)

    def _models(self) -> str:
        response = self._client.get("models")
        response.raise_for_status()
        served = [entry.id for entry in _read(ModelList, response.content, "models").data]
        if not served:
            raise _UnexpectedError("the server serves no model")
        self.model = self.model or served[0]
        if self.model not in served:
            raise _UnexpectedError(f"the model {self.model} is not served; {', '.join(served)} is")
        return f"serves {', '.join(served)}"

    def _chat(self) -> str:
        answer = self._complete({"messages": HELLO, "max_tokens": MAX_TOKENS})
        content = answer.choices[0].message.content
        if not content:
            raise _UnexpectedError("the answer is empty")
        return f"{json.dumps(content)}, {answer.usage.completion_tokens} tokens"

    def _stream(self) -> str:
        body = {
            "model": self.model,
            "messages": HELLO,
            "max_tokens": MAX_TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        pieces, usage, done = list[str](), None, False
        with self._client.stream("POST", "chat/completions", json=body) as response:
            if not response.is_success:  # what is shown of it has to be read first
                response.read()
            response.raise_for_status()
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:"):
                    continue
                if data == "[DONE]":
                    done = True
                    break
                chunk = _read(Chunk, data, "the stream")
                usage = chunk.usage or usage
                pieces += [choice.delta.content or "" for choice in chunk.choices]
        if not "".join(pieces) or not done:
            raise _UnexpectedError("the stream carried no text" if done else "the stream broke off")
        if usage is None:
            raise _UnexpectedError("the stream ended without usage")
        return f"{sum(map(bool, pieces))} pieces, usage {usage.total_tokens} tokens"

    def _tool_call(self) -> str:
        answer = self._complete(
            {"messages": WEATHER, "tools": [TOOL], "max_tokens": TOOL_TOKENS, "temperature": 0}
        )
        message = answer.choices[0].message
        if not message.tool_calls:
            said = json.dumps(message.content or "")[:120]
            raise _UnexpectedError(
                f"no tool call, but {said}; is --enable-auto-tool-choice with a --tool-call-parser set?"
            )
        call = message.tool_calls[0]
        shown = f"{call.function.name}({call.function.arguments})"
        arguments = decode(call.function.arguments, f"the arguments of {shown}", _ForeignError)
        if call.function.name != "get_weather" or not isinstance(arguments, dict) or "city" not in arguments:
            raise _UnexpectedError(f"the call is {shown}")
        return f"{shown}, id {call.id}"

    def _probe(self) -> str:
        assert self._probe_file is not None
        result = self._ask(self._probe_file, model=self.model)
        if not result["ok"]:
            raise _UnexpectedError(f"not what the release gives: {describe_shortly(result)}")
        return describe_shortly(result)

    def _complete(self, body: dict[str, object]) -> Completion:
        response = self._client.post("chat/completions", json={"model": self.model, **body})
        response.raise_for_status()
        return _read(Completion, response.content, "chat/completions")


def _read(model: type[Answer], text: str | bytes, where: str) -> Answer:
    return parse(model, decode(text, where, _ForeignError), where, _ForeignError)


class _ForeignError(DeployError):
    """An answer that no OpenAI-compatible server gives."""


class _UnexpectedError(Exception):
    """An answer that came, and is not the one there should be."""
