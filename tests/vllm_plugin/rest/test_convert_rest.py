"""Which layers `rest` converts, and to what; without an engine."""

import logging
from typing import Any

import pytest
import torch

from moe4.errors import ServeError
from moe4.kernels.reference import dequantize

pytestmark = pytest.mark.vllm

KINDS = ("int4", "int8")


def make_linear(rows: int = 32, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a layer as vLLM's, made without its configuration."""
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

    class Linear(LinearBase):  # type: ignore[misc]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            generator = torch.Generator().manual_seed(rows)
            weight = torch.randn(rows, 64, generator=generator).to(dtype)
            self.weight = torch.nn.Parameter(weight, requires_grad=False)
            self.quant_method = UnquantizedLinearMethod()

    return Linear()


def make_packed(*, num_bits: int = 4, symmetric: bool = True, group_size: int = 32) -> Any:
    """Return a layer as vLLM has it once a release's codes are loaded."""
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
        CompressedTensorsLinearMethod,
    )
    from vllm.model_executor.layers.quantization.compressed_tensors.schemes import CompressedTensorsWNA16

    layer = make_linear()
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(-(2**31), 2**31, (32, 64 * num_bits // 32), generator=generator)
    scales = torch.randn(32, 64 // group_size, generator=generator)
    layer.weight_packed = torch.nn.Parameter(words.to(torch.int32), requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(scales.to(torch.bfloat16), requires_grad=False)
    layer.scheme = CompressedTensorsWNA16("group", num_bits, group_size, symmetric)
    layer.quant_method = CompressedTensorsLinearMethod(None)
    del layer.weight
    return layer


def make_model(**layers: Any) -> torch.nn.Module:
    model = torch.nn.Module()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


@pytest.mark.parametrize("rest", KINDS)
def test_what_is_converted_and_what_is_kept(rest: Any) -> None:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    from moe4.vllm_plugin.rest.convert import convert_rest

    names = ("o_proj", "kv_b_proj", "gate", "gate_up_proj")
    model = make_model(**{name: make_linear() for name in names})
    before = {name: model.get_submodule(name).weight for name in names}
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    convert_rest(model, rest)
    for name in names:
        layer: Any = model.get_submodule(name)
        if name in ("kv_b_proj", "gate"):
            assert type(layer.quant_method) is UnquantizedLinearMethod
            assert layer.weight is before[name]
            continue
        layer.quant_method.process_weights_after_loading(layer)
        exact = x.float() @ before[name].float().T
        error = (layer.quant_method.apply(layer, x).float() - exact).norm() / exact.norm()
        assert 0 < error < {"int4": 0.12, "int8": 0.02}[rest]
        added = layer.quant_method.apply(layer, x, torch.full((32,), 100.0, dtype=torch.bfloat16))
        assert bool((added > 50).all())


@pytest.mark.parametrize("rest", KINDS)
def test_other_dtypes_are_refused(rest: Any) -> None:
    from moe4.vllm_plugin.rest.convert import convert_rest

    model = make_model(other=make_linear(dtype=torch.float32))
    with pytest.raises(ServeError, match=f"rest: {rest} needs --dtype bfloat16, and other is torch.float32"):
        convert_rest(model, rest)


def test_a_shape_the_kernel_does_not_take_stays(caplog: pytest.LogCaptureFixture) -> None:
    from moe4.vllm_plugin.rest import convert

    odd = make_linear(rows=24)
    before = odd.weight
    convert.logger.addHandler(caplog.handler)  # vLLM's loggers do not propagate
    try:
        with caplog.at_level(logging.INFO, logger=convert.logger.name):
            convert.convert_rest(make_model(odd=odd, even=make_linear()), "int4")
    finally:
        convert.logger.removeHandler(caplog.handler)
    assert odd.weight is before
    assert (
        "1 matrix beside the routed experts rounded to int4 in groups of 64, 4.1 kB to 1.1 kB" in caplog.text
    )
    assert "1 matrix beside the routed experts left in bfloat16" in caplog.text


def test_a_releases_codes_are_used_as_they_are() -> None:
    from moe4.vllm_plugin.rest.convert import convert_rest

    layer = make_packed()
    words, scales = layer.weight_packed, layer.weight_scale
    convert_rest(make_model(o_proj=layer), "int4")
    layer.quant_method.process_weights_after_loading(layer)
    assert layer.weight_packed.data_ptr() == words.data_ptr()
    assert layer.weight_scale.data_ptr() == scales.data_ptr()
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    exact = x.double() @ dequantize(words, scales, 32).T
    found = layer.quant_method.apply(layer, x).double()
    assert float((found - exact).norm() / exact.norm()) < 2**-8


def test_codes_of_another_kind_stay_vllms() -> None:
    from moe4.vllm_plugin.rest.convert import convert_rest

    layers = {
        "o_proj": make_packed(num_bits=8),
        "q_proj": make_packed(symmetric=False),
        "down_proj": make_packed(group_size=16),
        "kv_b_proj": make_packed(),
    }
    methods = {name: layer.quant_method for name, layer in layers.items()}
    convert_rest(make_model(**layers), "int4")
    assert {name: layer.quant_method for name, layer in layers.items()} == methods
    # int8 is for what is not quantized yet.
    packed = make_packed()
    method = packed.quant_method
    convert_rest(make_model(o_proj=packed), "int8")
    assert packed.quant_method is method
