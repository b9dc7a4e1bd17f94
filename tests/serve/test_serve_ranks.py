"""Over how many ranks `moe4 serve` lets a model be spread: as vLLM 0.32 and the plugin split it.

vLLM cuts a routed expert into as many parts as there are tensor parallel ranks in all data parallel engines,
unless experts are spread whole (`FusedMoEParallelConfig.make`); it splits attention's heads, dense layers and
shared experts over tensor parallel ranks only.
"""

from typing import Any

import pytest
from test_serve_command import KIMI, TINY, build

from moe4.errors import ServeError
from moe4.serve.ranks import ServedRanks, read_ranks

EXPERTS_WHOLE = "--enable-expert-parallel"


def serve_kimi(tensor: int, *extra: str, **changes: Any) -> str:
    model = {**KIMI, "needs_own_code": False, **changes}
    return build(model, *extra, device="gpu", tensor_parallel_size=tensor).shell_line()


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ((), ServedRanks(tensor=3)),
        (("-dp", "2", "-pp=4", "-ep"), ServedRanks(tensor=3, replicas=2, stages=4, whole_experts=True)),
        (("--data_parallel_size=2", "-pcp", "2"), ServedRanks(tensor=3, replicas=2, contexts=2)),
        (("--tensor_parallel_size", "5", EXPERTS_WHOLE), ServedRanks(tensor=5, whole_experts=True)),
        ((EXPERTS_WHOLE, "--no-enable-expert-parallel"), ServedRanks(tensor=3)),
        (("--data-parallel-size", "two"), ServedRanks(tensor=3)),
    ],
)
def test_ranks_are_read_from_vllms_options(extra: tuple[str, ...], expected: ServedRanks) -> None:
    assert read_ranks(3, extra) == expected


def test_processes() -> None:
    assert ServedRanks(tensor=2, stages=3, replicas=5, contexts=7).processes == 210


@pytest.mark.parametrize("tensor", [1, 2, 4, 8, 16])
def test_kimi_splits_over_up_to_16_ranks(tensor: int) -> None:
    assert tensor == 1 or f"--tensor-parallel-size {tensor}" in serve_kimi(tensor)


@pytest.mark.parametrize("tensor", [32, 64])
def test_whole_experts_need_not_split(tensor: int) -> None:
    cut = rf"^tensor_parallel_size={tensor}: the experts' inner width, 2048, does not split into whole"
    with pytest.raises(ServeError, match=cut) as caught:
        serve_kimi(tensor)
    assert str(caught.value).endswith(
        f"groups of 128 codes over {tensor} ranks; use tensor_parallel_size 1 or 2 or 4 or 8 or 16, "
        f"or {EXPERTS_WHOLE}, which keeps experts whole"
    )
    serve_kimi(tensor, EXPERTS_WHOLE)
    serve_kimi(tensor, "-ep")


@pytest.mark.parametrize("named", ["", "other", "other,moe4x"])
def test_gpus_need_the_plugin_for_one_group_a_rank(named: str) -> None:
    left_out = {"environment": {"VLLM_PLUGINS": named}, "device": "gpu", "tensor_parallel_size": 16}
    model = {**KIMI, "needs_own_code": False}
    with pytest.raises(
        ServeError, match=r"128 on each of 16 ranks, is one group .* add moe4 to VLLM_PLUGINS"
    ):
        build(model, **left_out)
    build(model, EXPERTS_WHOLE, **left_out)
    build(model, "-tp", "8", **left_out)
    build({**model, "group_size": 64}, **left_out)
    build({**model, "group_size": None}, **left_out)
    for loaded in ({}, {"VLLM_PLUGINS": "other,moe4"}):
        build(model, **{**left_out, "environment": loaded})
    build(model, **{**left_out, "device": "cpu", "processors": 16})


def test_engines_cut_experts_too() -> None:
    serve_kimi(8, "-dp", "2")
    with pytest.raises(ServeError, match=r"^tensor_parallel_size=16 --data-parallel-size 2: .* 32 ranks"):
        serve_kimi(16, "--data-parallel-size", "2")
    serve_kimi(16, "--data-parallel-size=2", EXPERTS_WHOLE)
    with pytest.raises(ServeError, match="32 ranks; use --enable-expert-parallel, which"):
        serve_kimi(1, "-dp", "32")
    with pytest.raises(ServeError, match="tensor_parallel_size=16 --prefill-context-parallel-size 2"):
        serve_kimi(16, "-pcp", "2")
    serve_kimi(16, "-pp", "2")  # stages have layers of their own


def test_heads_must_split_with_whole_experts_too() -> None:
    with pytest.raises(ServeError, match="64 attention heads do not split evenly over 3 ranks") as caught:
        serve_kimi(3, EXPERTS_WHOLE)
    assert str(caught.value).endswith("use tensor_parallel_size 1 or 2 or 4 or 8 or 16 or 32 or 64")


def test_heads_of_keys_and_values_are_split_or_copied() -> None:
    for tensor in (2, 4, 8, 16):
        serve_kimi(tensor, num_kv_heads=4)
    with pytest.raises(ServeError, match="6 heads of keys and values are neither"):
        serve_kimi(4, num_kv_heads=6)


def test_shared_experts_and_dense_layers_must_split() -> None:
    for extra in ((), (EXPERTS_WHOLE,)):
        with pytest.raises(ServeError, match="the shared experts' inner width, 100, does not"):
            serve_kimi(8, *extra, shared_widths=(100,))
        with pytest.raises(ServeError, match="the dense layers' inner width, 100, does not"):
            serve_kimi(8, *extra, dense_widths=(64, 100))
    # Several engines with whole experts: each rank computes shared experts whole, for its tokens.
    serve_kimi(8, EXPERTS_WHOLE, "-dp", "2", shared_widths=(100,))


def test_experts_that_are_not_quantized_split_anywhere() -> None:
    serve_kimi(64, group_size=None)
    with pytest.raises(ServeError, match="inner width, 96, does not split evenly over 64 ranks"):
        serve_kimi(64, group_size=None, expert_width=96)


def test_dense_models_have_no_experts_to_cut() -> None:
    serve_kimi(64, "-dp", "8", expert_width=None, group_size=None, shared_widths=())


def test_a_size_below_one() -> None:
    with pytest.raises(ServeError, match="tensor_parallel_size=0 is not at least 1"):
        build(TINY, tensor_parallel_size=0)
