"""What the benchmarks of serving on GPUs conclude, from made-up answers and kernels: no GPU is needed."""

import json
import sys
from pathlib import Path

import pytest
import torch
from model_fixtures import REFERENCE_MODEL, REPOSITORY, write_rounded_release
from safetensors.torch import load_file

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from check_gpu_serving import judge
from gpu.greedy import Answer, compare
from gpu.releases import decode, regroup
from gpu.step_kernels import Kernel, find_kind, summarize_kernels
from serving.weights import cache_bytes, chosen_experts, step_bytes, token_operations


def test_a_difference_counts_only_above_the_noise() -> None:
    twins = [Answer(tokens=[1, 2, 3], gaps=[4.0, 0.03, 2.0]), Answer(tokens=[7, 8], gaps=[1.0, 1.0])]
    answers = [Answer(tokens=[1, 9, 9], gaps=[4.01, 0.02, 1.0]), Answer(tokens=[7, 8], gaps=[1.0, 0.98])]
    differences, apart = compare(answers, twins)
    assert [(found.prompt, found.position, found.gap) for found in differences] == [(0, 1, 0.03)]
    assert apart == pytest.approx([0.01, 0.0, 0.02])
    tie = judge(answers, twins, noise=0.02)
    assert tie["passed"] and (tie["equal"], tie["ties"]) == (1, 1)
    wrong = judge(answers, twins, noise=0.01)
    assert not wrong["passed"] and wrong["wrong"] == [[0, 1, 0.03]]


def test_an_answer_that_ends_early_differs_where_it_ends() -> None:
    twin, short = Answer(tokens=[1, 2, 3], gaps=[1.0, 1.0, 0.5]), Answer(tokens=[1, 2], gaps=[1.0, 1.0])
    for pair in ((short, twin), (twin, short)):
        (found,), _ = compare([pair[0]], [pair[1]])
        assert (found.position, found.gap) == (2, 0.5)


def test_smaller_groups_are_the_same_weights(tmp_path: Path) -> None:
    release = write_rounded_release(REFERENCE_MODEL, tmp_path / "g128")
    small = regroup(release, tmp_path / "g32", 32)
    groups = json.loads((small / "config.json").read_text())["quantization_config"]["config_groups"]
    assert groups["group_0"]["weights"]["group_size"] == 32
    twins = [
        load_file(next(decode(each, tmp_path / name).glob("*.safetensors")))
        for each, name in ((release, "a"), (small, "b"))
    ]
    assert twins[0].keys() == twins[1].keys()
    assert all(torch.equal(twins[0][name], twins[1][name]) for name in twins[0])
    assert not any("weight_scale" in name or "weight_packed" in name for name in twins[0])
    with pytest.raises(ValueError, match="groups of 32 do not split into groups of 64"):
        regroup(small, tmp_path / "g64", 64)


def test_a_step_is_told_apart_into_kinds_and_gaps() -> None:
    kernels = [
        Kernel(name="void marlin_moe_wna16::Marlin<__nv_bfloat16>", start=0, end=10),
        Kernel(name="nvjet_tst_64x8", start=5, end=12),  # beside it, on another stream
        Kernel(name="triton_red_fused_add_mean_pow_rsqrt", start=20, end=21),
    ]
    found = summarize_kernels(kernels, num_steps=1)
    assert (found["microseconds"], found["any_kernel_runs"], found["gaps"]) == (21, 13, 8)
    assert found["kinds"] == {"Marlin, routed experts": 10, "dense products": 7, "norms, elementwise": 1}
    assert summarize_kernels([], 1) == {"kernels": 0}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void vllm::moe::topkGating<8, 384>", "router, sorting tokens"),
        ("vllm::moe::moe_align_block_size_kernel<int>", "router, sorting tokens"),
        ("flash_fwd_splitkv_mla_kernel", "attention"),
        ("vllm::concat_and_cache_mla_kernel", "attention"),
        ("void marlin::Marlin<__nv_bfloat16>", "dense products"),
        ("ncclDevKernel_AllReduce_Sum_bf16", "communication"),
        ("Memcpy DtoH (Device -> Pinned)", "copies"),
        ("vllm::act_and_mul_kernel", "norms, elementwise"),
        ("something new", "other"),
    ],
)
def test_kernels_are_known_by_name(name: str, kind: str) -> None:
    assert find_kind(name) == kind


def test_bytes_of_a_step_are_those_of_kimi_k2() -> None:
    """10.9 GB of experts and 21.1 GB of the rest a token, 70,272 bytes of cache; 61 billion operations."""
    config = json.loads((REPOSITORY / "reference" / "k2-tiny" / "config.json").read_text())
    config.update(
        hidden_size=7168, intermediate_size=18432, moe_intermediate_size=2048, num_hidden_layers=61,
        num_attention_heads=64, num_key_value_heads=64, q_lora_rank=1536, n_routed_experts=384,
        num_experts_per_tok=8, first_k_dense_replace=1, vocab_size=163840,
    )  # fmt: skip
    config["quantization_config"] = {"config_groups": {"group_0": {"weights": {"group_size": 128}}}}
    parts = step_bytes(config, 1)
    assert parts["experts"] == pytest.approx(10.90e9, rel=1e-3)
    assert parts["rest"] == pytest.approx(21.10e9, rel=1e-3)
    assert cache_bytes(config, 2, 3) == 6 * 70272
    assert token_operations(config) == pytest.approx(61.0e9, rel=1e-3)
    assert chosen_experts(config, 384, 1) == pytest.approx(8)
    assert chosen_experts(config, 384, 10_000) == pytest.approx(384)
