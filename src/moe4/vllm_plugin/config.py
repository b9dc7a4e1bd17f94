"""vLLM's compressed-tensors configuration with one difference: who runs W4A16 routed experts on a CPU."""

from typing import Any

from compressed_tensors import CompressionFormat
from compressed_tensors.quantization import QuantizationStrategy, QuantizationType
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
)

from moe4.vllm_plugin.experts.method import CpuW4A16ExpertsMethod
from moe4.vllm_plugin.loader.method import MappedW4A16ExpertsMethod, experts_are_mapped


class CpuCompressedTensorsConfig(CompressedTensorsConfig):  # type: ignore[misc]  # vllm is untyped here
    """Return moe4's method for routed experts in W4A16 `pack-quantized`; vLLM decides everything else.

    The class stands at module level because vLLM pickles it into its worker processes.
    """

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        """Return the method that creates and runs the weights of `layer`; None where vLLM has its default."""
        if isinstance(layer, RoutedExperts):
            group_size = self._w4a16_group_size(layer, prefix)
            if group_size is not None:
                if experts_are_mapped():
                    return MappedW4A16ExpertsMethod(layer, group_size)
                return CpuW4A16ExpertsMethod(layer, group_size)
        return super().get_quant_method(layer, prefix)

    def _w4a16_group_size(self, layer: Any, prefix: str) -> int | None:
        """Return the group size if expert 0's three projections are W4A16 `pack-quantized`, else None."""
        self._add_fused_moe_to_target_scheme_map()
        projections = (layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name)
        schemes = [self.get_scheme_dict(layer, f"{prefix}.0.{projection}") for projection in projections]
        scheme = schemes[0]
        if scheme is None or any(other != scheme for other in schemes):
            return None
        weights = scheme.get("weights")
        stored = scheme.get("format") or self.quant_format
        if (
            weights is None
            or scheme.get("input_activations") is not None
            or stored != CompressionFormat.pack_quantized.value
            or weights.num_bits != 4
            or weights.type != QuantizationType.INT
            or not weights.symmetric
            or weights.strategy != QuantizationStrategy.GROUP
        ):
            return None
        return int(weights.group_size)
