"""The order of scales that vLLM's Marlin path gets on GPUs, with moe4's correction, against the kernel's own.

vLLM's weight processing runs here on a CPU, except for the repacking of codes, which needs a GPU.
"""

import inspect
import logging
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor
from vllm_forks import VllmForks

pytestmark = pytest.mark.vllm

NUM_EXPERTS = 3
# Hidden size, inner width on the rank, group size.
HIT = [(256, 128, 128), (256, 64, 64), (256, 32, 32), (512, 128, 128), (128, 256, 128)]
NOT_HIT = [(256, 128, 64), (256, 128, 32), (256, 256, 128), (128, 128, 128), (128, 256, 64)]


def kernel_order(scales: Tensor) -> Tensor:
    """Return scales [experts, groups, N] as Marlin reads them: in tiles of 64, or of 32 for one group."""
    num_experts, groups, width = scales.shape
    if groups == 1:
        tiles = scales.reshape(num_experts, 1, width // 32, 4, 4, 2)
    else:
        tiles = scales.reshape(num_experts, groups, width // 64, 8, 8)
    return tiles.transpose(3, 4).reshape(scales.shape)


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """vLLM's module as it came, whatever a test puts into it."""
    import vllm.model_executor.layers.fused_moe.oracle.int_wna16 as module

    from moe4.vllm_plugin.marlin import scales as marlin_scales

    plain = inspect.unwrap(module.marlin_moe_permute_scales)
    monkeypatch.setattr(module, "marlin_moe_permute_scales", plain)
    monkeypatch.setattr(module, "_process_weights_marlin", module._process_weights_marlin)
    monkeypatch.setattr(module.ops, "gptq_marlin_moe_repack", lambda codes, *_, **__: codes)
    monkeypatch.setattr(marlin_scales, "_has_said", False)
    return module


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What the plugin writes to vLLM's log."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("vllm.plugins.moe4")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


def random_scales(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()


def process(module: ModuleType, hidden: int, width: int, group: int) -> list[tuple[Tensor, Tensor]]:
    """Return gate and up's scales and down's as vLLM prepares them, each beside those the kernel wants."""
    groups = (hidden // group, width // group) if group > 0 else (1, 1)
    w13 = random_scales(NUM_EXPERTS, 2 * width, groups[0])
    w2 = random_scales(NUM_EXPERTS, hidden, groups[1])
    codes = [
        torch.zeros(NUM_EXPERTS, rows, columns // 8, dtype=torch.int32)
        for rows, columns in ((2 * width, hidden), (hidden, width))
    ]
    layer = SimpleNamespace(
        intermediate_size_per_partition=width, num_groups_w13=groups[0], num_groups_w2=groups[1]
    )
    done = module._process_weights_marlin(layer, None, 4, 8, group, *codes, w13, w2)
    padded = -(-width // 64) * 64 - width  # vLLM fills a narrow expert with zeros, gate and up each
    w13 = torch.nn.functional.pad(w13.unflatten(1, (2, width)), (0, 0, 0, padded)).flatten(1, 2)
    w2 = torch.nn.functional.pad(w2, (0, padded // group if group > 0 else 0))
    return list(zip(done[2:4], (kernel_order(w13.mT), kernel_order(w2.mT)), strict=True))


@pytest.mark.parametrize("shape", HIT)
def test_one_group_a_rank_is_put_right(
    oracle: ModuleType, lines: list[str], shape: tuple[int, int, int]
) -> None:
    from moe4.vllm_plugin.marlin import scales as marlin_scales

    (w13, right), _ = process(oracle, *shape)
    assert not torch.equal(w13, right), "this vLLM is right already"
    marlin_scales.attach()
    for found, expected in process(oracle, *shape):
        assert torch.equal(found, expected)
    hidden, width, group = shape
    assert len(lines) == 1
    assert f"vLLM took K = {width} where it is {hidden}, in groups of {group}" in lines[0]
    process(oracle, *shape)
    assert len(lines) == 1, "one line for a process"


@pytest.mark.parametrize("shape", [*NOT_HIT, (256, 128, -1)])
def test_other_shapes_are_left_alone(
    oracle: ModuleType, lines: list[str], shape: tuple[int, int, int]
) -> None:
    from moe4.vllm_plugin.marlin import scales as marlin_scales

    before = process(oracle, *shape)
    marlin_scales.attach()
    for (found, expected), (unpatched, _) in zip(process(oracle, *shape), before, strict=True):
        assert torch.equal(found, unpatched)
        assert torch.equal(found, expected)
    assert not lines


@pytest.mark.parametrize("shape", HIT + NOT_HIT)
def test_a_vllm_that_gives_the_right_k_is_left_alone(
    oracle: ModuleType, lines: list[str], shape: tuple[int, int, int]
) -> None:
    from moe4.vllm_plugin.marlin import scales as marlin_scales

    source = inspect.getsource(oracle._process_weights_marlin)
    wrong, right = (
        "size_k=layer.intermediate_size_per_partition",
        "size_k=marlin_w13_scales.shape[1] * group_size",
    )
    assert source.count(wrong) == 1
    exec(source.replace(wrong, right), vars(oracle))
    marlin_scales.attach()
    for found, expected in process(oracle, *shape):
        assert torch.equal(found, expected)
    assert not lines


def test_a_permutation_that_finds_k_itself_is_left_alone(oracle: ModuleType, lines: list[str]) -> None:
    from moe4.vllm_plugin.marlin import scales as marlin_scales

    plain = oracle.marlin_moe_permute_scales

    def cured(s: Tensor, size_k: int, size_n: int, group_size: int, is_a_8bit: bool = False) -> Tensor:
        return plain(s, s.shape[1] * group_size, size_n, group_size, is_a_8bit)  # type: ignore[no-any-return]

    oracle.marlin_moe_permute_scales = cured  # type: ignore[attr-defined]
    marlin_scales.attach()
    for found, expected in process(oracle, *HIT[0]):
        assert torch.equal(found, expected)
    assert not lines


def test_attaching_twice_wraps_once(oracle: ModuleType) -> None:
    from moe4.vllm_plugin.marlin import scales as marlin_scales

    plain = oracle.marlin_moe_permute_scales
    marlin_scales.attach()
    marlin_scales.attach()
    assert oracle.marlin_moe_permute_scales.__wrapped__ is plain


def test_a_vllm_with_no_place_for_it_is_told(oracle: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from moe4.vllm_plugin.marlin import scales as marlin_scales

    oracle.marlin_moe_permute_scales = lambda s, size_n, group_size: s  # type: ignore[attr-defined]
    with pytest.raises(marlin_scales.NotAttachedError, match="marlin_moe_permute_scales takes no size_k"):
        marlin_scales.attach()
    del oracle.marlin_moe_permute_scales
    with pytest.raises(marlin_scales.NotAttachedError, match=r"^nothing in vllm.* calls marlin_moe"):
        marlin_scales.attach()
    monkeypatch.setattr(marlin_scales, "MODULE", "vllm.nowhere")
    with pytest.raises(marlin_scales.NotAttachedError, match="nowhere"):
        marlin_scales.attach()


def register_as_on_cuda(forks: VllmForks, prepare: str, then: str) -> str:
    """Return what a process prints that registers the plugin where vLLM says the platform is CUDA."""
    program = """
        import logging, types
        from unittest.mock import patch
        from vllm.model_executor.layers.quantization import get_quantization_config
        get_quantization_config("compressed-tensors")
        from vllm.platforms import current_platform
        import vllm.model_executor.layers.fused_moe.oracle.int_wna16 as oracle
        {prepare}
        import moe4.vllm_plugin
        answers = {{"is_cpu": lambda self: False, "is_cuda": lambda self: True}}
        with patch.multiple(type(current_platform), **answers):
            moe4.vllm_plugin.register()
        {then}
    """
    program = textwrap.dedent(program).format(prepare=prepare, then=textwrap.dedent(then))
    result = forks.program(program)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_the_plugin_attaches_on_cuda_and_changes_nothing_else(vllm_forks: VllmForks) -> None:
    text = register_as_on_cuda(
        vllm_forks,
        "",
        """
print("wrapped", hasattr(oracle.marlin_moe_permute_scales, "__wrapped__"))
print("config", get_quantization_config("compressed-tensors").__qualname__)
""",
    )
    assert "wrapped True" in text
    assert "config CompressedTensorsConfig" in text
    assert "moe4 is tested with" not in text


def test_experts_at_risk_are_named_where_nothing_can_be_corrected(vllm_forks: VllmForks) -> None:
    text = register_as_on_cuda(
        vllm_forks,
        "del oracle.marlin_moe_permute_scales",
        """
weights = dict(num_bits=4, type="int", symmetric=True, strategy="group", group_size=128)
group = dict(targets=["Linear"], weights=weights, input_activations=None)
config = get_quantization_config("compressed-tensors").from_config(dict(
    quant_method="compressed-tensors", format="pack-quantized", config_groups=dict(group_0=group), ignore=[]))
for number, width in enumerate((256, 128, 128)):
    layer = types.SimpleNamespace(moe_config=types.SimpleNamespace(intermediate_size_per_partition=width))
    config.get_quant_method(layer, f"layer{number}.experts")
""",
    )
    assert "layer0.experts" not in text
    assert "layer1.experts: moe4 cannot correct the scale order" in text
    assert "128, is one group or less" in text
    assert "layer2.experts" not in text, "one line for a process"


def test_the_reproduction_for_vllms_maintainers_prints_what_its_page_says(vllm_forks: VllmForks) -> None:
    page = (Path(__file__).parents[3] / "docs" / "vllm-marlin-scales.md").read_text(encoding="utf-8")
    program, printed = page.split("```python\n")[1].split("```")
    result = vllm_forks.program(program)
    assert result.returncode == 0, result.stderr
    lines = [line.strip() for line in printed.splitlines() if line.startswith("    hidden")]
    assert [line for line in result.stdout.splitlines() if line.startswith("hidden")] == lines
    assert len(lines) == 5
