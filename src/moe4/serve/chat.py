"""A conversation with an OpenAI-compatible server, streamed."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from moe4 import extras
from moe4.arguments import argument
from moe4.errors import ServeError
from moe4.probe.check import is_address
from moe4.strict_json import JsonObject

DEFAULT_URL = "http://127.0.0.1:8000/v1"


@dataclass(kw_only=True, slots=True)
class Conversation:
    """The turns so far, and the server they go to.

    client: an `openai.OpenAI`. options: what goes into each request besides model and messages.
    finish_reason and usage are the last answer's; None before it, or where it was stopped.
    """

    client: Any
    model: str
    system: str | None = None
    options: JsonObject = field(default_factory=dict)
    messages: list[JsonObject] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, int] | None = None

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all turns but the system's."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str) -> Iterator[str]:
        """Send a message and yield the answer's pieces as they come.

        Closing the iterator stops the answer at the server and keeps the part that has come. Raises
        ServeError if the server cannot be reached or refuses; the message is then forgotten.
        """
        self.finish_reason, self.usage = None, None
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            stream = self.client.chat.completions.create(
                model=self.model,
                messages=self.messages,
                stream=True,
                stream_options={"include_usage": True},
                **self.options,
            )
            with stream:
                for chunk in stream:
                    if chunk.usage is not None:
                        self.usage = chunk.usage.model_dump(
                            include={"prompt_tokens", "completion_tokens", "total_tokens"}
                        )
                    for choice in chunk.choices:
                        self.finish_reason = choice.finish_reason or self.finish_reason
                        if choice.delta.content:
                            pieces.append(choice.delta.content)
                            yield choice.delta.content
        except Exception as error:  # the client checks no answer's form, and passes on what breaks one off
            self.messages.pop()
            pieces.clear()
            raise _as_serve_error(error, self.client) from None
        finally:
            if self.messages and self.messages[-1]["role"] == "user":
                self.messages.append({"role": "assistant", "content": "".join(pieces)})


def connect(base_url: str, model: str | None) -> tuple[Any, str]:
    """Return a client for the server and the model's name, the server's first one if none is given.

    The API key is taken from VLLM_API_KEY. Raises ServeError if no server answers or it lacks the model.
    """
    client = open_client(base_url, os.environ.get("VLLM_API_KEY"))
    try:
        served = [str(each.id) for each in client.models.list()]
    except Exception as error:  # as above
        raise _as_serve_error(error, client) from None
    if not served:
        raise ServeError(f"{base_url} serves no model")
    if model is not None and model not in served:
        raise ServeError(f"{base_url} does not serve {model}; it has {', '.join(served)}")
    return client, model or served[0]


def open_client(base_url: str, key: str | None) -> Any:
    """Return an `openai.OpenAI` for a server. Raises ServeError for an address that is none."""
    extras.require("openai")
    import openai

    if not is_address(base_url):
        raise ServeError(f"{base_url} is not an address; give one such as http://127.0.0.1:8000")
    address = base_url.rstrip("/")
    try:
        return openai.OpenAI(
            base_url=address if address.endswith("/v1") else f"{address}/v1",
            api_key=key or "none",
            max_retries=0,
            timeout=600,
        )
    except Exception as error:  # the errors of its HTTP library, which is not always the same
        raise ServeError(f"{base_url} is not an address: {error}") from None


def _as_serve_error(error: Exception, client: Any) -> ServeError:
    """Return the one line for a failed request."""
    import openai

    url = str(client.base_url).rstrip("/")
    if not isinstance(error, openai.OpenAIError):
        return ServeError(f"{url} does not answer as the chat completions API does ({type(error).__name__})")
    if isinstance(error, openai.APITimeoutError):
        return ServeError(f"{url} did not answer in time")
    if isinstance(error, openai.APIConnectionError):
        return ServeError(
            f"no server answers at {url}; start one with `moe4 serve RELEASE`, or give {argument('base_url')}"
        )
    if isinstance(error, openai.AuthenticationError):
        return ServeError(f"{url} wants an API key: set VLLM_API_KEY")
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        return ServeError(f"{url} refused the request: {body.get('message') or error.message}")
    return ServeError(f"{url} broke off the answer: {error}")
