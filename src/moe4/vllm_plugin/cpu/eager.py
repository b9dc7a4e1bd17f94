"""Small functions of vLLM that torch compiles when they are first called, run as they are written on a CPU.

vLLM 0.32 decorates them with `torch.compile`, also under --enforce-eager, and never warms them up. The first
request that asks for `logprobs` compiled one: everybody waited 11 s, and without a C++ compiler the engine
died. On a CPU there is nothing to gain: the largest is one comparison of [requests, vocabulary].
"""

import importlib
from collections.abc import Iterable
from types import ModuleType

# The modules that define such functions, and those that imported one of them by its name.
MODULES = (
    "vllm.v1.sample.ops.logprobs",
    "vllm.v1.sample.ops.topk_topp_sampler",
    "vllm.v1.sample.sampler",
    "vllm.model_executor.layers.vocab_parallel_embedding",
)
# What torch.compile leaves on a decorated function: the function it was given.
_ORIGINAL = "_torchdynamo_orig_callable"


def attach() -> None:
    """Put the plain functions in the place of the compiled ones in vLLM's sampler and embedding.

    Raises ImportError or AttributeError where vLLM has no such module, or the sampler does not count ranks in
    the known place, so that a request for `logprobs` may still compile.
    """
    modules = [importlib.import_module(name) for name in MODULES]
    run_eagerly(modules)
    if hasattr(modules[2].batched_count_greater_than, _ORIGINAL):
        raise AttributeError(f"{MODULES[2]}.batched_count_greater_than is still compiled")


def run_eagerly(modules: Iterable[ModuleType]) -> list[str]:
    """Replace every function in `modules` that torch.compile decorated by what it was; return their names."""
    replaced = []
    for module in modules:
        for name, value in list(vars(module).items()):
            original = getattr(value, _ORIGINAL, None)
            if callable(original):
                setattr(module, name, original)
                replaced.append(f"{module.__name__}.{name}")
    return replaced
