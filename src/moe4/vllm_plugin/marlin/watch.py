"""vLLM's compressed-tensors configuration, naming experts at risk where `marlin_scales` cannot attach."""

import logging
from typing import Any

from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
)

_logger = logging.getLogger("vllm.plugins.moe4")
_has_said = False


class WatchedCompressedTensorsConfig(CompressedTensorsConfig):  # type: ignore[misc]  # vllm is untyped here
    """vLLM's own choices, and an error in the log where experts have one group a rank.

    The class stands at module level because vLLM pickles it into its worker processes.
    """

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        """Return vLLM's method for `layer`, having looked at its width."""
        global _has_said
        width = getattr(getattr(layer, "moe_config", None), "intermediate_size_per_partition", None)
        if width is not None and not _has_said and any(width <= size for size in self._int4_group_sizes()):
            _has_said = True
            _logger.error(
                "%s: moe4 cannot correct the scale order of this version of vLLM, and the experts' inner "
                "width on this rank, %d, is one group or less: answers may be wrong. Check them, or use "
                "smaller groups, fewer tensor-parallel ranks or --enable-expert-parallel",
                prefix,
                width,
            )
        return super().get_quant_method(layer, prefix)

    def _int4_group_sizes(self) -> list[int]:
        """Return the group sizes of the checkpoint's INT4 weights."""
        weights = [scheme.get("weights") for scheme in self.target_scheme_map.values() if scheme]
        return [int(w.group_size) for w in weights if w and w.num_bits == 4 and w.group_size]
