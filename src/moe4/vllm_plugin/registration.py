"""The entry point that vLLM calls in each of its processes."""

import logging

TESTED_VLLM = "0.32"

_registered = False


def register() -> None:
    """Make vLLM's `compressed-tensors` use moe4's kernels for W4A16 routed experts on CPU.

    Cheap and repeatable: does nothing on other platforms or when called again. Where vLLM's internals have
    moved, it leaves vLLM as it is and says so, so that models without W4A16 experts are not affected.
    """
    global _registered
    if _registered:
        return
    _registered = True

    import vllm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    # vLLM configures handlers for its own logger only; a child of it is seen, and follows VLLM_LOGGING_LEVEL.
    logger = logging.getLogger("vllm.plugins.moe4")
    if not str(vllm.__version__).startswith(f"{TESTED_VLLM}."):
        logger.warning(
            "moe4 is tested with vLLM %s, this is %s: check the answers of W4A16 models on CPU",
            TESTED_VLLM,
            vllm.__version__,
        )
    try:
        from vllm.model_executor.layers.quantization import register_quantization_config

        from moe4.vllm_plugin import loader, mla, rotary  # noqa: F401  # they register themselves
        from moe4.vllm_plugin.collectives import attach
        from moe4.vllm_plugin.config import CpuCompressedTensorsConfig

        attach()
    except (ImportError, AttributeError) as error:
        logger.error(
            "moe4 cannot attach to vLLM %s (tested with %s), so W4A16 experts will not load on this CPU: %s",
            vllm.__version__,
            TESTED_VLLM,
            error,
        )
        return
    register_quantization_config("compressed-tensors")(CpuCompressedTensorsConfig)
    try:
        from moe4.vllm_plugin import eager

        eager.attach()
    except (ImportError, AttributeError) as error:
        logger.warning(
            "moe4: on vLLM %s the first request for logprobs may wait for a compilation, which stops the "
            "server where there is no C++ compiler: %s",
            vllm.__version__,
            error,
        )
