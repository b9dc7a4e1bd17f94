"""Serve a release, talk to a server, and examine the machine that serves."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from moe4.api.operation import (
    PathLike,
    Positive,
    Source,
    Text,
    open_source,
    operation,
    optional_path,
    say,
)
from moe4.progress import OnProgress, ignore
from moe4.strict_json import JsonObject

if TYPE_CHECKING:
    from moe4.deploy.smoke import SmokeOutcome
    from moe4.serve.chat import Conversation
    from moe4.serve.command import ServeCommand
    from moe4.serve.doctor import Diagnosis
    from moe4.serve.run import RunningServer

KEY_VARIABLE = "VLLM_API_KEY"


@operation
def serve_command(
    release: Source,
    *,
    revision: Text | None = None,
    host: Text = "127.0.0.1",
    port: int = 0,
    max_model_len: int | Text | None = None,
    tensor_parallel_size: int = 1,
    rest: str = "bfloat16",
    expert_cache: float | None = None,
    open_metrics: bool = False,
    api_key: str | None = None,
    vllm_options: Sequence[str] = (),
    find_port: bool = True,
) -> "ServeCommand":
    """Return the command that serves a release, with the variables it sets, without starting it.

    release, revision, host, port, max_model_len, tensor_parallel_size, rest, expert_cache, open_metrics,
    api_key, vllm_options: as in `serve`. find_port: check that the port is free, and replace 0 by a free one.
    Raises ServeError, CheckpointError, HubError or MissingDependencyError.

        >>> command = moe4.serve_command("release", port=8000, find_port=False)
        >>> "--served-model-name" in command.arguments
        True
    """
    from moe4.serve.command import ServeOptions
    from moe4.serve.run import prepare
    from moe4.serve.sizes import read_tokens

    options = ServeOptions(
        host=host,
        port=port,
        max_model_len=read_tokens(max_model_len),
        tensor_parallel_size=tensor_parallel_size,
        expert_cache_gb=expert_cache,
        rest=rest,
        open_metrics=open_metrics,
        extra=tuple(vllm_options),
    )
    key = {} if api_key is None else {KEY_VARIABLE: api_key}
    return prepare(open_source(release, revision), options, {**os.environ, **key}, find_port=find_port)


@operation
def serve(
    release: Source,
    *,
    revision: Text | None = None,
    host: Text = "127.0.0.1",
    port: int = 0,
    max_model_len: int | Text | None = None,
    tensor_parallel_size: int = 1,
    rest: str = "bfloat16",
    expert_cache: float | None = None,
    open_metrics: bool = False,
    api_key: str | None = None,
    vllm_options: Sequence[str] = (),
    check: bool = True,
    log: PathLike | None = None,
    on_progress: OnProgress = ignore,
) -> AbstractContextManager["RunningServer"]:
    """Serve a release with vLLM during a `with` block, which begins when the server is ready.

    release: a folder, or an id on the hub, at `revision`. host, port: to listen on; 0 is any free port.
    max_model_len: longest conversation in tokens, also as "32k". tensor_parallel_size: GPUs, or CPU ranks.
    rest: on a CPU, type of everything but the routed experts: bfloat16, int8 or int4. expert_cache: on a
    CPU, GB for a cache of experts. open_metrics: answer /metrics without the key. api_key: that requests
    must carry, the value of VLLM_API_KEY if None. vllm_options: more options for vLLM. check: check the
    expected answers first; the server's `probe` has the verdict. log: file for vLLM's log. on_progress:
    called at each step.
    Raises ServeError, quoting vLLM's error, CheckpointError, HubError or MissingDependencyError.

        >>> with moe4.serve("release") as server:
        ...     answer = server.client().chat.completions.create(
        ...         model=server.model, messages=[{"role": "user", "content": "What is 2 + 2?"}])
    """
    from moe4.serve.process import check_log
    from moe4.serve.run import serving

    if log is not None:
        check_log(Path(log))
    folder = open_source(release, revision, on_progress)
    built = serve_command(
        folder,
        host=host,
        port=port,
        max_model_len=max_model_len,
        tensor_parallel_size=tensor_parallel_size,
        rest=rest,
        expert_cache=expert_cache,
        open_metrics=open_metrics,
        api_key=api_key,
        vllm_options=vllm_options,
    )
    return serving(
        built,
        folder,
        log=optional_path(log),
        check=check,
        say=say,
        on_progress=on_progress,
    )


@operation
def chat(
    base_url: Text = "http://127.0.0.1:8000/v1",
    *,
    model: Text | None = None,
    system: str | None = None,
    max_tokens: Positive | None = None,
    temperature: Annotated[float, Field(ge=0)] | None = None,
) -> "Conversation":
    """Start a conversation with a served model. Its method `ask` sends a message and streams the answer.

    base_url: the server, with or without /v1. model: the first that the server lists if None. system: system
    message, the chat template's if None. max_tokens: longest answer. temperature: 0 takes the likeliest token
    each time; the model's own if None. The API key comes from VLLM_API_KEY. Raises ServeError if no server
    answers.

        >>> "".join(moe4.chat("http://127.0.0.1:8000").ask("Hello!"))
        'Hello.'
    """
    from moe4.serve.chat import Conversation, connect

    client, name = connect(base_url, model)
    options: JsonObject = {"max_tokens": max_tokens, "temperature": temperature}
    given = {key: value for key, value in options.items() if value is not None}
    return Conversation(client=client, model=name, system=system, options=given)


@dataclass(frozen=True, kw_only=True, slots=True)
class SmokeResult:
    """The outcome of each check of a server."""

    url: str
    model: str | None
    checks: "tuple[SmokeOutcome, ...]"

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def as_dict(self) -> JsonObject:
        """Return plain JSON types."""
        checks = [asdict(check) for check in self.checks]
        return {"url": self.url, "model": self.model, "ok": self.ok, "checks": checks}

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))


@operation
def smoke(
    url: Text,
    *,
    model: Text | None = None,
    probe: PathLike | None = None,
    timeout: float = 120.0,
    insecure: bool = False,
    api_key: str | None = None,
    on_outcome: Callable[..., None] = lambda outcome: None,
) -> SmokeResult:
    """Check a server: its models, a chat, a stream with usage and a tool call; `ok` if all are right.

    url, model: the server, and the first model that it lists if None. probe: also check the expected answers
    of this release. timeout: seconds to wait for one answer. insecure: do not check the server's certificate.
    api_key: the value of VLLM_API_KEY if None. on_outcome: called with the outcome of each check. A server
    that does not answer fails a check; see `checks`. Raises DeployError for a wrong address, and ProbeError.

        >>> moe4.smoke("http://127.0.0.1:8000").ok
        True
    """
    from moe4.deploy.smoke import SmokeTest

    test = SmokeTest(
        url,
        model=model,
        api_key=os.environ.get(KEY_VARIABLE) if api_key is None else api_key,
        timeout=timeout,
        verify=not insecure,
        probe=optional_path(probe),
    )
    outcomes = []
    for outcome in test.run():
        outcomes.append(outcome)
        on_outcome(outcome)
    return SmokeResult(url=url, model=test.model, checks=tuple(outcomes))


@operation
def doctor(*, measure: bool = False) -> "Diagnosis":
    """Describe this machine: versions, missing libraries, GPUs, memory, disk, hub, compiler, kernel path.

    It needs no extra. measure: also measure how fast memory is read, in bytes a second. Raises KernelError if
    MOE4_KERNEL names a path that this machine cannot run.

        >>> print(moe4.doctor())
        versions   moe4 ...
    """
    from moe4.serve.doctor import diagnose

    return diagnose(os.environ, measure=measure)
