"""The vLLM command that serves a model: pure functions of the model, the machine and the user's options."""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moe4.errors import ServeError
from moe4.serve.binding import choose_binding
from moe4.serve.extra import find_value, is_given
from moe4.serve.host import Host
from moe4.serve.ranks import check_groups, check_ranks, read_ranks

if TYPE_CHECKING:  # it reads checkpoints, which what starts and stops vLLM can do without
    from moe4.serve.model import ServedModel

GIB = 1 << 30
# Whole conversations the CPU's cache has room for, where memory allows: vLLM's unit is the GiB.
CACHED_CONVERSATIONS = 8
PLUGIN = "moe4"  # its entry point's name in pyproject.toml
LOAD_FORMAT = "moe4"  # as moe4.vllm_plugin registers it


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """What the user asked for. `extra` goes to vLLM as it is and wins over what moe4 would choose.

    expert_cache_gb, rest: options of `--load-format moe4` (docs/loading.md).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    expert_cache_gb: float | None = None
    rest: str = "bfloat16"
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeCommand:
    """The program and its arguments, and the variables set for it beside the ones already there."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    model_name: str
    url: str

    def shell_line(self) -> str:
        """Return the command as a line for a shell, variables first."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.arguments)])


def build_command(
    model: "ServedModel", host: Host, options: ServeOptions, environment: dict[str, str]
) -> ServeCommand:
    """Return the vLLM command for `model` on `host`; `environment` is the caller's and is not overridden.

    Raises ServeError where the options cannot work.
    """
    extra = options.extra
    ranks = read_ranks(options.tensor_parallel_size, extra)
    if model.needs_own_code and not is_given(extra, "--trust-remote-code"):
        raise ServeError(
            f"the tokenizer in {model.folder} is code: read it, and add --trust-remote-code if you trust it"
        )
    check_ranks(model, ranks)
    if host.device == "gpu" and not _loads_plugin(environment):
        check_groups(model, ranks)
    max_model_len = options.max_model_len or model.max_position_embeddings
    if options.max_model_len is not None and not 1 <= options.max_model_len <= model.max_position_embeddings:
        raise ServeError(
            f"--max-model-len {options.max_model_len} is not in 1..{model.max_position_embeddings}, "
            f"the lengths {model.name} was made for"
        )
    name = find_value(extra, "--served-model-name") or model.name
    arguments = [*host.vllm, "serve", str(model.folder), "--host", options.host, "--port", str(options.port)]
    defaults: list[tuple[str, str | None]] = [
        ("--served-model-name", name),
        ("--max-model-len", str(max_model_len)),
    ]
    if options.tensor_parallel_size > 1:
        defaults.append(("--tensor-parallel-size", str(options.tensor_parallel_size)))
    if model.uses_kimi_calls:
        defaults += [("--enable-auto-tool-choice", None), ("--tool-call-parser", "kimi_k2")]
    variables: dict[str, str] = {}
    if host.device == "cpu":
        defaults.append(("--dtype", "bfloat16"))
        if ranks.stages == 1:  # vLLM 0.32 makes a later stage's input buffers only while it compiles
            defaults.append(("--enforce-eager", None))
        if model.group_size is not None and model.expert_width is not None:
            defaults.append(("--load-format", LOAD_FORMAT))
        variables = _cpu_variables(model, host, ranks.processes, max_model_len, environment)
    loader = _loader_options(options)
    if loader:
        if (find_value(extra, "--load-format") or dict(defaults).get("--load-format")) != LOAD_FORMAT:
            raise ServeError(
                f"--rest and --expert-cache belong to --load-format {LOAD_FORMAT}, which is for W4A16 "
                f"experts on CPUs; {model.name} is to be loaded in another way"
            )
        defaults.append(("--model-loader-extra-config", json.dumps(loader)))
    for flag, value in defaults:
        if not is_given(extra, flag):
            arguments += [flag] if value is None else [flag, value]
    address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(options.host, options.host)
    return ServeCommand(
        arguments=(*arguments, *extra),
        environment={key: value for key, value in variables.items() if key not in environment},
        model_name=name,
        url=f"http://{address}:{options.port}/v1",
    )


def _loads_plugin(environment: dict[str, str]) -> bool:
    """Say whether vLLM will load moe4's plugin: it takes all there are unless VLLM_PLUGINS names some."""
    named = environment.get("VLLM_PLUGINS")
    return named is None or PLUGIN in named.split(",")


def _loader_options(options: ServeOptions) -> dict[str, object]:
    """Return what the user asked of `--load-format moe4`."""
    wanted: dict[str, object] = {}
    if options.expert_cache_gb is not None:
        if options.expert_cache_gb < 0:
            raise ServeError(f"--expert-cache {options.expert_cache_gb:g} is below 0")
        wanted["expert_cache_gb"] = options.expert_cache_gb
    if options.rest != "bfloat16":
        if options.rest != "int8":
            raise ServeError(f"--rest {options.rest} is not one of bfloat16, int8")
        wanted["rest"] = options.rest
    return wanted


def _cpu_variables(
    model: "ServedModel", host: Host, ranks: int, max_model_len: int, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return vLLM's settings for a CPU: room for the cache, and which processors each rank's threads take."""
    wanted = CACHED_CONVERSATIONS * max_model_len * model.kv_bytes_per_token / GIB
    affordable = host.memory_bytes // 4 // GIB
    needed = max_model_len * model.kv_bytes_per_token / GIB
    space = max(1, math.ceil(needed), min(math.ceil(wanted), affordable))
    binding = choose_binding(host.processors, ranks, environment)
    return {"VLLM_CPU_KVCACHE_SPACE": str(space), **binding.variables}
