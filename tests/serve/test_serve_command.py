"""The vLLM command that is built from a model, a machine and the user's options."""

import json
import os
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest

from moe4.errors import ServeError
from moe4.machine.processors import Processors
from moe4.serve.command import (
    REST_TYPES,
    TOOL_PARSER_FILE,
    ServeCommand,
    ServeOptions,
    build_command,
)
from moe4.serve.host import Host
from moe4.serve.model import ServedModel
from moe4.serve.sizes import read_tokens
from moe4.vllm_plugin.loader.options import Rest

GIB = 1 << 30
TINY: dict[str, Any] = {
    "folder": Path("out/tiny"),
    "name": "tiny",
    "max_position_embeddings": 4096,
    "expert_width": 128,
    "group_size": 128,
    "num_heads": 4,
    "num_kv_heads": None,
    "dense_widths": (512,),
    "shared_widths": (128,),
    "kv_bytes_per_token": 6912,
    "uses_kimi_calls": True,
    "needs_own_code": False,
}
# Kimi-K2-Instruct at group 128: 61 layers of 512 + 64 latent values in BF16.
KIMI: dict[str, Any] = {
    **TINY,
    "name": "kimi",
    "max_position_embeddings": 131072,
    "expert_width": 2048,
    "num_heads": 64,
    "dense_widths": (18432,),
    "shared_widths": (2048,),
    "kv_bytes_per_token": 70272,
    "needs_own_code": True,
}


def build(
    model: dict[str, Any] = TINY,
    *extra: str,
    device: str = "cpu",
    processors: int = 8,
    memory_gib: int = 64,
    environment: dict[str, str] | None = None,
    **options: Any,
) -> ServeCommand:
    host = Host(
        device="cpu" if device == "cpu" else "gpu",
        vllm=("vllm",),
        processors=Processors(cores=tuple((number,) for number in range(processors))),
        memory_bytes=memory_gib * GIB,
    )
    return build_command(ServedModel(**model), host, ServeOptions(extra=extra, **options), environment or {})


def test_cpu_command_in_full() -> None:
    assert build().shell_line() == (
        "VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=0,1,2,3,4,5,6,7 MOE4_YIELD_PROCESSORS=1 "
        "vllm serve out/tiny --host 127.0.0.1 --port 8000 --served-model-name tiny "
        "--max-model-len 4096 --enable-auto-tool-choice "
        f"--tool-parser-plugin {TOOL_PARSER_FILE} --tool-call-parser moe4_kimi_k2 "
        "--exclude-tools-when-tool-choice-none --dtype bfloat16 "
        "--enforce-eager --load-format moe4"
    )


def test_gpu_command_in_full() -> None:
    built = build(KIMI, "--trust-remote-code", device="gpu", tensor_parallel_size=8, host="0.0.0.0", port=80)
    assert built.shell_line() == (
        "vllm serve out/tiny --host 0.0.0.0 --port 80 --served-model-name kimi --max-model-len 131072 "
        "--tensor-parallel-size 8 --enable-auto-tool-choice "
        f"--tool-parser-plugin {TOOL_PARSER_FILE} --tool-call-parser moe4_kimi_k2 "
        "--exclude-tools-when-tool-choice-none --trust-remote-code"
    )
    assert built.url == "http://127.0.0.1:80/v1"


def test_no_reasoning_parser() -> None:
    assert "reasoning" not in build().shell_line()


def test_other_chat_forms_get_no_tool_parser() -> None:
    assert "tool" not in build({**TINY, "uses_kimi_calls": False}).shell_line()


@pytest.mark.parametrize(
    ("extra", "absent"),
    [
        (("--no-enforce-eager",), "--enforce-eager"),
        (("--dtype=float32",), "bfloat16"),
        (("--served-model-name", "mine"), "--served-model-name tiny"),
        (("--served_model_name=mine",), "--served-model-name tiny"),
        (("--tool-call-parser", "hermes"), "kimi_k2"),
        (("--tool-call-parser", "kimi_k2"), "--tool-parser-plugin"),
        (("--no-exclude-tools-when-tool-choice-none",), " --exclude-tools"),
    ],
)
def test_the_users_options_win_and_come_last(extra: tuple[str, ...], absent: str) -> None:
    built = build(TINY, *extra)
    assert absent not in built.shell_line()
    assert built.arguments[-len(extra) :] == extra
    assert built.model_name == ("mine" if "mine" in " ".join(extra) else "tiny")


def test_the_users_environment_wins() -> None:
    given = {"VLLM_CPU_KVCACHE_SPACE": "7", "VLLM_CPU_OMP_THREADS_BIND": "0"}
    assert build(environment=given).environment == {}
    assert "MOE4_YIELD_PROCESSORS" not in build(environment={"MOE4_YIELD_PROCESSORS": "0"}).environment


def test_cache_space_holds_one_conversation_and_more_where_memory_allows() -> None:
    one = 131072 * 70272 / GIB  # 8.6 GiB
    trusting = (KIMI, "--trust-remote-code")
    assert build(*trusting, memory_gib=1024).environment["VLLM_CPU_KVCACHE_SPACE"] == "69"
    assert 69 >= 8 * one > 68
    assert build(*trusting, memory_gib=160).environment["VLLM_CPU_KVCACHE_SPACE"] == "40"
    assert build(*trusting, memory_gib=16).environment["VLLM_CPU_KVCACHE_SPACE"] == "9"
    assert build(*trusting, memory_gib=16, max_model_len=4096).environment["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_cpu_ranks_get_equal_runs_of_processors() -> None:
    model = {**TINY, "expert_width": 256}
    built = build(model, tensor_parallel_size=2, processors=5)
    assert built.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0,1|2,3"
    staged = build(model, "--pipeline-parallel-size", "2", tensor_parallel_size=2, processors=4)
    assert staged.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0|1|2|3"
    twice = build({**model, "group_size": 32}, "--data-parallel-size=2", processors=4)
    assert twice.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0,1|2,3"
    assert "--enforce-eager" in built.arguments
    assert "--enforce-eager" not in staged.arguments
    with pytest.raises(ServeError, match="2 ranks need 2 processors, found 1"):
        build(model, tensor_parallel_size=2, processors=1)


@pytest.mark.parametrize("length", [0, 4097])
def test_lengths_beyond_the_model_are_refused(length: int) -> None:
    with pytest.raises(ServeError, match=r"not in 1\.\.4096"):
        build(max_model_len=length)


@pytest.mark.parametrize(
    ("text", "tokens"), [("4096", 4096), ("4k", 4000), ("4K", 4096), ("1.5k", 1500), ("2m", 2_000_000)]
)
def test_lengths_are_written_as_vllm_takes_them(text: str, tokens: int) -> None:
    assert read_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "32kb", "four", "1.5", "1.5K", "4096.0", "-5", "1e3", "٣٢"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ServeError, match="is not a number of tokens"):
        read_tokens(text)


@pytest.mark.parametrize("size", [float("nan"), float("inf"), -1.0])
def test_what_is_no_size_of_a_cache_is_refused(size: float) -> None:
    with pytest.raises(ServeError, match="is not a size in GB"):
        build(expert_cache_gb=size)


def test_a_tokenizer_that_is_code_needs_consent() -> None:
    with pytest.raises(ServeError, match="add --trust-remote-code"):
        build(KIMI)


def test_shell_line_can_be_pasted() -> None:
    model = {**TINY, "folder": Path("a folder/x'y"), "name": "x'y"}
    words = shlex.split(build(model).shell_line())
    assert words[words.index("vllm") :][:3] == ["vllm", "serve", "a folder/x'y"]


def test_only_w4a16_experts_on_a_cpu_are_mapped() -> None:
    assert "--load-format moe4" in build().shell_line()
    assert "--load-format" not in build(device="gpu").shell_line()
    assert "--load-format" not in build({**TINY, "group_size": None}).shell_line()
    assert "--load-format" not in build({**TINY, "expert_width": None}).shell_line()
    assert build(TINY, "--load-format=auto").shell_line().count("load-format") == 1


def test_the_loaders_options_reach_it() -> None:
    built = build(rest="int8", expert_cache_gb=1.5)
    extra = built.arguments[built.arguments.index("--model-loader-extra-config") + 1]
    assert json.loads(extra) == {"expert_cache_gb": 1.5, "rest": "int8"}
    assert "--model-loader-extra-config" not in build().arguments
    assert get_args(Rest) == REST_TYPES
    for rest in REST_TYPES[1:]:
        assert json.dumps({"rest": rest}) in build(rest=rest).arguments
    for options, reason in (
        ({"rest": "int2"}, 'rest="int2" is not one of bfloat16, int8, int4'),
        ({"expert_cache_gb": -1.0}, "expert_cache=-1 is not a size in GB"),
        ({"rest": "int8", "device": "gpu"}, "belong to --load-format moe4"),
        ({"expert_cache_gb": 2.0, "model": {**TINY, "group_size": None}}, "belong to --load-format moe4"),
    ):
        with pytest.raises(ServeError, match=reason):
            build(**options)
    with pytest.raises(ServeError, match="belong to --load-format moe4"):
        build(TINY, "--load-format", "auto", rest="int8")


GUARD = "moe4.serve.guard.KeyGuard"


def test_without_a_key_nothing_is_guarded() -> None:
    built = build(environment={"VLLM_API_KEY": ""})
    assert (built.secrets, built.key) == ({}, None)
    assert "--middleware" not in built.arguments


@pytest.mark.parametrize(
    ("extra", "environment"),
    [
        (("--api-key", "s3cret"), {}),
        (("--api-key=s3cret",), {}),
        (("--api_key", "s3cret"), {}),
        (("--api-ke", "s3cret"), {}),  # argparse takes it for --api-key
        (("--api-key", "older", "--max-num-seqs", "3", "--api-key", "s3cret"), {}),
        ((), {"VLLM_API_KEY": "s3cret"}),
        (("--api-key", "s3cret"), {"VLLM_API_KEY": "older", "MOE4_API_KEYS": "older"}),
    ],
)
def test_a_key_is_guarded_and_shown_nowhere(extra: tuple[str, ...], environment: dict[str, str]) -> None:
    built = build(TINY, *extra, environment=environment)
    assert built.key == "s3cret"
    assert built.secrets["VLLM_API_KEY"] == "s3cret"
    assert not built.secrets.get("MOE4_API_KEYS")
    assert built.arguments[-2:] == ("--middleware", GUARD)
    assert not [word for word in built.arguments if "api-ke" in word or "api_key" in word]
    for shown in (built.shell_line(), repr(built), repr(built.arguments), repr(built.environment)):
        assert "s3cret" not in shown and "older" not in shown
    assert 'VLLM_API_KEY="${VLLM_API_KEY:?}"' in built.shell_line()


def test_several_keys_are_the_guards() -> None:
    built = build(TINY, "--api-key", "one", "two", "--seed", "1")
    assert built.secrets == {"MOE4_API_KEYS": "one\ntwo", "VLLM_API_KEY": ""}  # vLLM's own takes one
    assert built.key == "one"
    assert built.arguments[-4:-2] == ("--seed", "1")


def test_the_guard_is_outside_of_other_middleware() -> None:
    built = build(TINY, "--middleware", "mine.Own", open_metrics=True, environment={"VLLM_API_KEY": "k"})
    assert built.arguments[-4:] == ("--middleware", "mine.Own", "--middleware", f"{GUARD}OpenMetrics")


@pytest.mark.parametrize(
    ("extra", "environment", "reason"),
    [
        (("--api-key",), {}, "--api-key has no value"),
        (("--api-key=",), {}, "--api-key has no value"),
        (("--api-key", "--seed", "1"), {}, "--api-key has no value"),
        (("--api-key", "schlüssel"), {}, "--api-key holds a key that no header"),
        (("--grpc",), {"VLLM_API_KEY": "k"}, "--grpc listens without asking"),
        (("--grpc-port=1",), {"VLLM_API_KEY": "k"}, "--grpc-port listens without asking"),
        ((), {"VLLM_API_KEY": "k", "VLLM_USE_RUST_FRONTEND": "1"}, "VLLM_USE_RUST_FRONTEND"),
    ],
)
def test_what_would_leave_a_door_open_is_refused(
    extra: tuple[str, ...], environment: dict[str, str], reason: str
) -> None:
    with pytest.raises(ServeError, match=reason) as caught:
        build(TINY, *extra, environment=environment)
    assert "schlüssel" not in str(caught.value)


def test_a_pipe_in_place_of_vllms_own_configuration_is_left_to_vllm(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vllm.yaml")
    assert build(TINY, "--config", str(tmp_path / "vllm.yaml")).key is None


def test_a_key_in_vllms_own_configuration_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "vllm.yaml"
    config.write_text("api_key: s3cret\n")
    with pytest.raises(ServeError, match="guards /v1 alone") as caught:
        build(TINY, "--config", str(config))
    assert "s3cret" not in str(caught.value)
    config.write_text("max-num-seqs: 3\ngrpc: true\n")
    assert build(TINY, "--config", str(config)).key is None
    with pytest.raises(ServeError, match="--grpc listens"):
        build(TINY, "--config", str(config), environment={"VLLM_API_KEY": "k"})
