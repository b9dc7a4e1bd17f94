"""Functions that vLLM would compile at a request run plainly, so that no request needs a C++ compiler."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from model_fixtures import write_random_model
from vllm_forks import VllmForks

pytestmark = pytest.mark.vllm

PROMPTS = [[5, 6, 7, 8], list(range(3, 40))]
NO_COMPILER = "/nonexistent/c++"


def test_logprobs_need_no_compiler(tmp_path: Path, vllm_forks: VllmForks) -> None:
    """Of two ranks: test_two_processes.py."""
    model = write_random_model(tmp_path / "random", num_hidden_layers=2, n_routed_experts=4)
    request = {"model": model, "prompts": PROMPTS, "max_tokens": 3, "prompt_logprobs": True}
    environment = {
        "CXX": NO_COMPILER,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        "VLLM_CPU_OMP_THREADS_BIND": "0",
    }
    answers, log = vllm_forks.engine(request, environment)
    assert [len(answer["steps"]) for answer in answers] == [3, 3]
    assert [len(answer["prompt_logprobs"]) for answer in answers] == [3, 36]
    assert "may wait for a compilation" not in log


def test_the_sampler_counts_ranks_plainly() -> None:
    from vllm.v1.sample import sampler

    from moe4.vllm_plugin import register
    from moe4.vllm_plugin.cpu import eager

    register()
    assert not hasattr(sampler.batched_count_greater_than, "_torchdynamo_orig_callable")
    values = torch.tensor([[0.1, 0.5, 0.3], [0.9, 0.2, 0.2]])
    assert sampler.batched_count_greater_than(values, values[:, 1:2]).tolist() == [1, 3]
    eager.attach()  # a second time changes nothing
    assert sampler.batched_count_greater_than(values, values[:, 2:3]).tolist() == [2, 3]


def test_only_compiled_functions_are_replaced() -> None:
    def plain(x: torch.Tensor) -> torch.Tensor:
        return x

    module = ModuleType("example")
    module.compiled, module.plain, module.number = torch.compile(plain), plain, 3  # type: ignore[attr-defined]
    assert eager_names(module) == ["example.compiled"]
    assert module.compiled is plain  # type: ignore[attr-defined]
    assert eager_names(module) == []


def eager_names(module: ModuleType) -> list[str]:
    from moe4.vllm_plugin.cpu.eager import run_eagerly

    return run_eagerly([module])


def test_a_vllm_that_has_moved_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.sample import sampler

    from moe4.vllm_plugin.cpu import eager

    monkeypatch.delattr(sampler, "batched_count_greater_than")
    with pytest.raises(AttributeError, match="batched_count_greater_than"):
        eager.attach()
