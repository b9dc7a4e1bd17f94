"""The entry point that vLLM calls in each of its processes."""

import logging

from moe4.vllm_facts.versions import TESTED_VLLM

_registered = False

# vLLM configures handlers for its own logger only; a child of it is seen, and follows VLLM_LOGGING_LEVEL.
_logger = logging.getLogger("vllm.plugins.moe4")


def register() -> None:
    """Make vLLM right for W4A16 routed experts: with moe4's kernels on CPU, with its own on NVIDIA GPUs.

    Cheap and repeatable: does nothing on other platforms or when called again. Where vLLM's internals have
    moved, it leaves vLLM as it is and says so, so that models without W4A16 experts are not affected.
    """
    global _registered
    if _registered:
        return
    _registered = True

    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _register_on_cpu()
    elif current_platform.is_cuda():
        _register_on_cuda()


def _register_on_cpu() -> None:
    """Have moe4's kernels run the experts, from moe4's loader."""
    import vllm

    if not str(vllm.__version__).startswith(f"{TESTED_VLLM}."):
        _logger.warning(
            "moe4 is tested with vLLM %s, this is %s: check the answers of W4A16 models on CPU",
            TESTED_VLLM,
            vllm.__version__,
        )
    try:
        from vllm.model_executor.layers.quantization import register_quantization_config

        from moe4.vllm_plugin.config import CpuCompressedTensorsConfig
        from moe4.vllm_plugin.cpu import (
            collectives,
            mla,  # noqa: F401
            rotary,  # noqa: F401
            threads,
            waiting,
        )
        from moe4.vllm_plugin.loader import load as loader  # noqa: F401

        for part in (collectives, threads, waiting):
            part.attach()
    except (ImportError, AttributeError) as error:
        _logger.error(
            "moe4 cannot attach to vLLM %s (tested with %s), so W4A16 experts will not load on this CPU: %s",
            vllm.__version__,
            TESTED_VLLM,
            error,
        )
        return
    register_quantization_config("compressed-tensors")(CpuCompressedTensorsConfig)
    try:
        from moe4.vllm_plugin.cpu import eager

        eager.attach()
    except (ImportError, AttributeError) as error:
        _logger.warning(
            "on vLLM %s the first request for logprobs may wait for a compilation, which stops the "
            "server if there is no C++ compiler: %s",
            vllm.__version__,
            error,
        )


def _register_on_cuda() -> None:
    """Correct the scale order for Marlin; where that is impossible, watch for experts that need it."""
    from moe4.vllm_plugin.marlin import scales as marlin_scales

    try:
        marlin_scales.attach()
    except marlin_scales.NotAttachedError as reason:
        _logger.debug("moe4 cannot correct the scale order: %s", reason)
        try:
            from vllm.model_executor.layers.quantization import register_quantization_config

            from moe4.vllm_plugin.marlin.watch import WatchedCompressedTensorsConfig
        except (ImportError, AttributeError) as error:
            _logger.error(
                "moe4 cannot attach to this vLLM; W4A16 experts with one group a rank may be wrong: %s",
                error,
            )
            return
        register_quantization_config("compressed-tensors")(WatchedCompressedTensorsConfig)
