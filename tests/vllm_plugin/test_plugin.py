"""What the plugin takes over from vLLM and what it leaves alone, without an engine."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_fixtures import IGNORED_BY_QUANTIZATION
from vllm_forks import VllmForks

pytestmark = pytest.mark.vllm

PREFIX = "model.layers.1.mlp.experts"


class RoutedExperts(SimpleNamespace):
    """As much of vLLM's layer as the choice of a method looks at; vLLM matches the class by its name."""

    ckpt_gate_proj_name, ckpt_up_proj_name, ckpt_down_proj_name = "gate_proj", "up_proj", "down_proj"


def quantization(weights: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    args = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
    group = {"targets": ["Linear"], "weights": {**args, **(weights or {})}, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": IGNORED_BY_QUANTIZATION,
        **changes,
    }


def group_size(config: dict[str, Any]) -> int | None:
    from moe4.vllm_plugin.config import CpuCompressedTensorsConfig

    return CpuCompressedTensorsConfig.from_config(config)._w4a16_group_size(RoutedExperts(), PREFIX)


def test_w4a16_experts_are_ours() -> None:
    assert group_size(quantization()) == 64
    assert group_size(quantization({"group_size": 128, "actorder": "weight"})) == 128


@pytest.mark.parametrize(
    "config",
    [
        quantization({"num_bits": 8}),
        quantization({"symmetric": False}),
        quantization({"strategy": "channel", "group_size": None}),
        quantization(ignore=["re:.*experts.*"]),
        quantization(ignore=["re:.*down_proj"]),
        quantization(format="dense"),
    ],
    ids=["8 bits", "asymmetric", "by channel", "ignored experts", "ignored down", "not packed"],
)
def test_other_schemes_are_left_to_vllm(config: dict[str, Any]) -> None:
    assert group_size(config) is None


def layer(**changes: Any) -> Any:
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    settings = {
        "activation": MoEActivation.SILU,
        "has_bias": False,
        "is_lora_enabled": False,
        "swiglu_limit": None,
        "in_dtype": torch.bfloat16,
        **{key: value for key, value in changes.items() if key != "apply_router_weight_on_input"},
    }
    return SimpleNamespace(
        layer_name=PREFIX,
        moe_config=SimpleNamespace(**settings),
        swiglu_limit=None,
        apply_router_weight_on_input=changes.get("apply_router_weight_on_input", False),
    )


def test_what_the_kernel_lacks_is_refused_by_name() -> None:
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    from moe4.errors import KernelError
    from moe4.vllm_plugin.experts.method import CpuW4A16ExpertsMethod

    CpuW4A16ExpertsMethod(layer(), 128)
    for changes, reason in (
        ({"activation": MoEActivation.GELU}, "activation 'gelu'"),
        ({"has_bias": True}, "biases"),
        ({"is_lora_enabled": True}, "LoRA"),
        ({"swiglu_limit": 7.0}, "clamped SwiGLU"),
        ({"apply_router_weight_on_input": True}, "router weights on the experts' input"),
        ({"in_dtype": torch.float64}, "float64"),
    ):
        with pytest.raises(KernelError, match=reason):
            CpuW4A16ExpertsMethod(layer(**changes), 128)
    with pytest.raises(KernelError, match="group size 256"):
        CpuW4A16ExpertsMethod(layer(), 256)


class Parameters(torch.nn.Module):
    layer_name = PREFIX


def created(group: int = 64) -> tuple[Any, Any]:
    from moe4.vllm_plugin.experts.method import CpuW4A16ExpertsMethod

    method, module = CpuW4A16ExpertsMethod(layer(), group), Parameters()
    method.create_weights(module, 3, 256, 128, torch.bfloat16, weight_loader=lambda *_: True)
    return method, module


def test_parameters_have_the_checkpoints_layout() -> None:
    _, module = created()
    assert {name: (tuple(p.shape), p.dtype) for name, p in module.named_parameters()} == {
        "w13_weight_packed": ((3, 256, 32), torch.int32),
        "w13_weight_scale": ((3, 256, 4), torch.bfloat16),
        "w13_weight_shape": ((3, 2), torch.float32),
        "w2_weight_packed": ((3, 256, 16), torch.int32),
        "w2_weight_scale": ((3, 256, 2), torch.bfloat16),
        "w2_weight_shape": ((3, 2), torch.float32),
    }


def test_a_width_that_cuts_a_group_is_refused() -> None:
    from moe4.errors import KernelError
    from moe4.vllm_plugin.experts.method import CpuW4A16ExpertsMethod

    method = CpuW4A16ExpertsMethod(layer(), 128)
    with pytest.raises(KernelError, match="192, is not a multiple of the group size 128"):
        method.create_weights(Parameters(), 3, 256, 192, torch.bfloat16, weight_loader=lambda *_: True)


def test_scales_that_are_missing_or_not_finite_are_noticed() -> None:
    method, module = created()
    module.w13_weight_scale.data.fill_(1)
    module.w2_weight_scale.data[:2].fill_(1)
    with pytest.raises(ValueError, match=r"w2_weight_scale, 1 of 3 experts .* the first is 2"):
        method.process_weights_after_loading(module)
    module.w2_weight_scale.data[2].fill_(float("inf"))
    with pytest.raises(ValueError, match="the first is 2"):
        method.process_weights_after_loading(module)
    module.w2_weight_scale.data[2].fill_(-1)
    method.process_weights_after_loading(module)


def test_experts_of_other_ranks_add_nothing() -> None:
    method, module = created()
    generator = torch.Generator().manual_seed(0)
    for name in ("w13_weight_packed", "w2_weight_packed"):
        getattr(module, name).data.random_(-(2**31), 2**31 - 1, generator=generator)
    for name in ("w13_weight_scale", "w2_weight_scale"):
        getattr(module, name).data.fill_(0.01)
    x = torch.randn(5, 256, generator=generator).to(torch.bfloat16)
    weights = torch.rand(5, 2, generator=generator)
    ids = torch.tensor([[0, 1], [2, 3], [4, 5], [5, 0], [3, 1]], dtype=torch.int32)
    # This rank has the experts 0, 2 and 4 of six, as its experts 0, 1 and 2.
    module.expert_map = torch.tensor([0, -1, 1, -1, 2, -1], dtype=torch.int32)
    part = method.apply(module, x, weights, ids, None, None)
    module.expert_map = None
    local = torch.tensor([[0, -1], [1, -1], [2, -1], [-1, 0], [-1, -1]], dtype=torch.int32)
    assert torch.equal(part, method.apply(module, x, weights, local, None, None))
    assert part[:4].abs().amax(dim=1).gt(0).all()
    assert part[4].eq(0).all()


def test_registering_twice_gives_our_configuration(vllm_forks: VllmForks) -> None:
    result = vllm_forks.program("""
        from vllm.plugins import load_general_plugins
        load_general_plugins()
        import moe4.vllm_plugin
        moe4.vllm_plugin.register()
        from vllm.model_executor.layers.quantization import get_quantization_config
        print(get_quantization_config("compressed-tensors").__qualname__)
    """)
    assert result.stdout.splitlines()[-1] == "CpuCompressedTensorsConfig", result.stderr


def test_a_vllm_whose_internals_moved_is_left_as_it_is(vllm_forks: VllmForks) -> None:
    result = vllm_forks.program("""
        import vllm
        from vllm.model_executor.layers.quantization import get_quantization_config
        get_quantization_config("compressed-tensors")  # all that vLLM itself wants is imported now
        vllm.__version__ = "0.99.0"
        import vllm.model_executor.layers.fused_moe as fused_moe
        del fused_moe.FusedMoEMethodBase
        import moe4.vllm_plugin
        moe4.vllm_plugin.register()
        print(get_quantization_config("compressed-tensors").__qualname__)
    """)
    assert result.returncode == 0, result.stderr
    text = result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "CompressedTensorsConfig", text
    assert "moe4 is tested with vLLM 0.32, this is 0.99.0" in text
    assert "moe4 cannot attach to vLLM 0.99.0" in text
    assert "FusedMoEMethodBase" in text


def test_importing_the_entry_point_loads_neither_torch_nor_vllm() -> None:
    program = 'import sys, moe4.vllm_plugin; assert not {"torch", "vllm"} & set(sys.modules)'
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
