"""Where a step of vLLM goes on a GPU: kernels by kind, and the time in which none runs."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# The first pattern that is found in a kernel's name gives its kind.
KINDS = (
    ("Marlin, routed experts", r"marlin_moe_wna16"),
    ("router, sorting tokens", r"topk|moe_align|count_and_sort|moe_sum|router|expert_offset|sort_expert"),
    ("attention", r"flash|mla|attn|attention|concat_and_cache|merge_state|paged|splitkv|combine"),
    ("sampling", r"argmax|sampl|softmax|gumbel|penalt|logits|ArgMax|scatter_gather|token"),
    ("dense products", r"marlin|nvjet|gemm|gemv|cutlass|cublas|xmma|splitK|dot_kernel|addmm|mm_"),
    ("communication", r"nccl|all_reduce|allreduce|cross_device_reduce|all_gather"),
    ("copies", r"[Mm]emcpy|[Mm]emset"),
    (
        "norms, elementwise",
        r"triton|norm|elementwise|act_and_mul|silu|rotary|vectorized|reduce|cat|fill",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One run of a kernel; times in microseconds."""

    name: str
    start: float
    end: float


def find_kind(name: str) -> str:
    """Return the kind of the kernel of this name."""
    for kind, pattern in KINDS:
        if re.search(pattern, name):
            return kind
    return "other"


def summarize_kernels(kernels: Iterable[Kernel], num_steps: int) -> dict[str, Any]:
    """Return microseconds a step: by kind, of the longest kernels, of gaps, from first start to last end.

    Kernels that run beside one another count with their own time each, so that kinds can add up to more than
    the time in which any ran.
    """
    ordered = sorted(kernels, key=lambda kernel: kernel.start)
    if not ordered:
        return {"kernels": 0}
    kinds: dict[str, float] = defaultdict(float)
    names: dict[str, list[float]] = defaultdict(list)
    covered, end = 0.0, ordered[0].start
    for kernel in ordered:
        length = kernel.end - kernel.start
        kinds[find_kind(kernel.name)] += length
        names[kernel.name].append(length)
        covered += max(0.0, kernel.end - max(end, kernel.start))
        end = max(end, kernel.end)
    whole = end - ordered[0].start
    longest = sorted(names.items(), key=lambda item: -sum(item[1]))[:40]
    return {
        "kernels": round(len(ordered) / num_steps, 1),
        "microseconds": round(whole / num_steps, 1),
        "any_kernel_runs": round(covered / num_steps, 1),
        "gaps": round((whole - covered) / num_steps, 1),
        "kinds": {kind: round(kinds[kind] / num_steps, 1) for kind in sorted(kinds, key=lambda k: -kinds[k])},
        "longest": [
            {
                "name": name[:140],
                "kind": find_kind(name),
                "runs": round(len(found) / num_steps, 2),
                "microseconds": round(sum(found) / num_steps, 2),
            }
            for name, found in longest
        ],
    }


def read_profile(profile: Any) -> list[Kernel]:
    """Return what ran on the GPU during a torch.profiler.profile."""
    from torch.autograd import DeviceType

    return [
        Kernel(name=event.name, start=float(event.time_range.start), end=float(event.time_range.end))
        for event in profile.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
