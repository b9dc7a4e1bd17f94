"""The vLLM command that serves a model: pure functions of the model, the machine and the user's options."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from moe4.arguments import argument
from moe4.errors import CheckpointError, ServeError
from moe4.escape import shell_line, shell_word
from moe4.files.regular import read_text
from moe4.serve.binding import choose_binding
from moe4.serve.extra import KEY_FLAG, find_value, is_given, take_keys
from moe4.serve.guard import KEY_VARIABLE, KEYS_VARIABLE, check_keys, guard_path, read_keys
from moe4.serve.host import Host
from moe4.serve.ranks import check_groups, check_ranks, read_ranks
from moe4.units import GIB
from moe4.vllm_facts import flags

if TYPE_CHECKING:  # it reads checkpoints, which what starts and stops vLLM can do without
    from moe4.serve.model import ServedModel

# Whole conversations the CPU's cache has room for, where memory allows: vLLM's unit is the GiB.
CACHED_CONVERSATIONS = 8
PLUGIN = "moe4"  # its entry point's name in pyproject.toml
LOAD_FORMAT = "moe4"  # as moe4.vllm_plugin registers it
REST_TYPES = ("bfloat16", "int8", "int4")  # as its loader takes them
TOOL_PARSER_FILE = Path(__file__).resolve().parents[1] / "vllm_plugin" / "tool_parser.py"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """What the user asked for. `extra` goes to vLLM as it is and wins over what moe4 would choose.

    expert_cache_gb, rest: options of `--load-format moe4` (docs/loading.md).
    open_metrics: /metrics answers without the API key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    expert_cache_gb: float | None = None
    rest: str = "bfloat16"
    open_metrics: bool = False
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeCommand:
    """The program and its arguments, and the variables set for it beside the ones already there.

    secrets: variables whose values are printed nowhere. rest: what `--rest` asked for.
    """

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    model_name: str
    rest: str = "bfloat16"
    url: str
    port: int

    @property
    def key(self) -> str | None:
        """An API key that the server takes, if it asks for one."""
        return read_keys(self.secrets)[0] if self.secrets else None

    def as_dict(self) -> dict[str, object]:
        """Return plain JSON types; of the secrets the names alone."""
        return {
            "command": self.arguments,
            "environment": self.environment,
            "secrets": [name for name, value in self.secrets.items() if value],
        }

    def shell_line(self) -> str:
        """Return the command as a line for a shell, variables first; a secret's is to be set there."""
        variables = [f"{name}={shell_word(value)}" for name, value in self.environment.items()]
        secrets = [f'{name}="${{{name}:?}}"' if value else f"{name}=" for name, value in self.secrets.items()]
        return " ".join([*variables, *secrets, shell_line(self.arguments)])


def build_command(
    model: "ServedModel", host: Host, options: ServeOptions, environment: dict[str, str]
) -> ServeCommand:
    """Return the vLLM command for `model` on `host`; `environment` is the caller's and is not overridden.

    Raises ServeError where the options cannot work.
    """
    extra, keys = take_keys(options.extra)
    secrets = _secrets(keys, extra, environment)
    ranks = read_ranks(options.tensor_parallel_size, extra)
    if model.needs_own_code and not is_given(extra, flags.TRUST_REMOTE_CODE):
        raise ServeError(
            f"the tokenizer in {model.folder} is code: read it, and add "
            f"{flags.TRUST_REMOTE_CODE} if you trust it"
        )
    check_ranks(model, ranks)
    if host.device == "gpu" and not _loads_plugin(environment):
        check_groups(model, ranks)
    max_model_len = _max_model_len(model, options)
    name = find_value(extra, flags.MODEL_NAME) or model.name
    address = [flags.HOST, options.host, flags.PORT, str(options.port)]
    arguments = [*host.vllm, "serve", str(model.folder), *address]
    defaults: list[tuple[str, str | None]] = [
        (flags.MODEL_NAME, name),
        (flags.MAX_MODEL_LEN, str(max_model_len)),
    ]
    if options.tensor_parallel_size > 1:
        defaults.append((flags.TENSOR_PARALLEL, str(options.tensor_parallel_size)))
    defaults += _tool_flags(model, extra)
    variables: dict[str, str] = {}
    if host.device == "cpu":
        defaults.append((flags.DTYPE, "bfloat16"))
        if ranks.stages == 1:  # vLLM 0.32 makes a later stage's input buffers only while it compiles
            defaults.append((flags.ENFORCE_EAGER, None))
        if model.group_size is not None and model.expert_width is not None:
            defaults.append((flags.LOAD_FORMAT, LOAD_FORMAT))
        variables = _cpu_variables(model, host, ranks.processes, max_model_len, environment)
    loader = _loader_options(options)
    if loader:
        if (find_value(extra, flags.LOAD_FORMAT) or dict(defaults).get(flags.LOAD_FORMAT)) != LOAD_FORMAT:
            raise ServeError(
                f"{argument('rest')} and {argument('expert_cache')} belong to --load-format {LOAD_FORMAT}, "
                f"which is for W4A16 experts on CPUs; {model.name} is loaded in another way"
            )
        defaults.append((flags.LOADER_CONFIG, json.dumps(loader)))
    for flag, value in defaults:
        if not is_given(extra, flag):
            arguments += [flag] if value is None else [flag, value]
    if secrets:
        guard = guard_path(open_metrics=options.open_metrics)
        extra = (*extra, flags.MIDDLEWARE, guard)  # the last is outermost
    return ServeCommand(
        arguments=(*arguments, *extra),
        environment={key: value for key, value in variables.items() if key not in environment},
        secrets=secrets,
        model_name=name,
        rest=options.rest,
        url=_url(options),
        port=options.port,
    )


def _max_model_len(model: "ServedModel", options: ServeOptions) -> int:
    """Return the tokens that a conversation may have."""
    longest, asked = model.max_position_embeddings, options.max_model_len
    if asked is not None and not 1 <= asked <= longest:
        raise ServeError(
            f"{argument('max_model_len', asked)} is not in 1..{longest}, the lengths {model.name} was "
            "made for"
        )
    return asked or longest


def _tool_flags(model: "ServedModel", extra: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """Return what makes vLLM read the model's tool calls; none for other forms of calls."""
    if not model.uses_kimi_calls:
        return []
    found: list[tuple[str, str | None]] = [(flags.AUTO_TOOLS, None)]
    if not is_given(extra, flags.TOOL_PARSER):
        found += [
            (flags.TOOL_PARSER_FILE, str(TOOL_PARSER_FILE)),
            (flags.TOOL_PARSER, flags.OUR_KIMI_PARSER),
        ]
    # Without it `tool_choice: "none"` shows the tools to the model, whose call then comes as text.
    if not is_given(extra, f"--no-{flags.NO_TOOLS.removeprefix('--')}"):
        found.append((flags.NO_TOOLS, None))
    return found


def _url(options: ServeOptions) -> str:
    """Return where this machine reaches the API."""
    address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(options.host, options.host)
    return f"http://{address}:{options.port}/v1"


def _secrets(keys: list[str], extra: tuple[str, ...], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that give vLLM and the guard the keys; none without a key.

    Raises ServeError where a key is set and vLLM would open what the guard does not see.
    """
    config = find_value(extra, flags.CONFIG_FILE)
    settings = _read_config(Path(config)) if config else set()
    if KEY_FLAG in settings:
        raise ServeError(f"{config} sets api-key, which guards /v1 alone: set {KEY_VARIABLE} instead")
    found = check_keys(KEY_FLAG, keys) or read_keys(environment)
    if not found:
        return {}
    for flag in ("--grpc", "--grpc-port"):
        if is_given(extra, flag) or flag in settings:
            raise ServeError(f"{flag} listens without asking for the API key: leave it out, or set no key")
    if environment.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise ServeError("VLLM_USE_RUST_FRONTEND bypasses the API key's guard: unset it, or set no key")
    if len(found) > 1:  # vLLM's own check would take the variable for one key
        return {KEYS_VARIABLE: "\n".join(found), KEY_VARIABLE: ""}
    return {KEY_VARIABLE: found[0], **({KEYS_VARIABLE: ""} if KEYS_VARIABLE in environment else {})}


def _read_config(path: Path) -> set[str]:
    """Return the options that a file of vLLM's `--config` sets. What cannot be read is left to vLLM."""
    import yaml

    try:
        found = yaml.safe_load(read_text(path))
    except (CheckpointError, ValueError, yaml.YAMLError):
        return set()
    return {f"--{str(key).replace('_', '-')}" for key in found} if isinstance(found, dict) else set()


def _loads_plugin(environment: dict[str, str]) -> bool:
    """Say whether vLLM will load moe4's plugin: it takes all there are unless VLLM_PLUGINS names some."""
    named = environment.get("VLLM_PLUGINS")
    return named is None or PLUGIN in named.split(",")


def _loader_options(options: ServeOptions) -> dict[str, object]:
    """Return what the user asked of `--load-format moe4`."""
    wanted: dict[str, object] = {}
    if options.expert_cache_gb is not None:
        if not 0 <= options.expert_cache_gb < math.inf:
            raise ServeError(
                f"{argument('expert_cache', options.expert_cache_gb)} is not a size in GB: give 0 or more"
            )
        wanted["expert_cache_gb"] = options.expert_cache_gb
    if options.rest != "bfloat16":
        if options.rest not in REST_TYPES:
            raise ServeError(f"{argument('rest', options.rest)} is not one of {', '.join(REST_TYPES)}")
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
