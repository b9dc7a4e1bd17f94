"""Over how many ranks a model can be served: what vLLM would refuse only later, or get wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moe4.arguments import argument
from moe4.errors import ServeError
from moe4.serve.extra import find_whole, is_on
from moe4.vllm_facts import flags
from moe4.vllm_facts.expert_splits import one_group_a_rank, splits_evenly

if TYPE_CHECKING:
    from moe4.serve.model import ServedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedRanks:
    """How vLLM is asked to spread a model over processes.

    tensor: ranks that split attention, dense layers and shared experts between them.
    stages: of the pipeline; each has layers of its own.
    replicas: engines with attention of their own (data parallelism).
    contexts: ranks that take parts of a prompt each (prefill context parallelism).
    whole_experts: routed experts are spread whole over the ranks of a stage (expert parallelism); otherwise
        each is cut into as many parts as a stage has ranks, those of all replicas included.
    """

    tensor: int
    stages: int = 1
    replicas: int = 1
    contexts: int = 1
    whole_experts: bool = False

    @property
    def processes(self) -> int:
        """How many there are."""
        return self.tensor * self.stages * self.replicas * self.contexts

    @property
    def parts_of_experts(self) -> int:
        """Into how many parts a routed expert's inner width is cut."""
        return 1 if self.whole_experts else self.tensor * self.replicas * self.contexts

    def __str__(self) -> str:
        """Return vLLM's options that decide what is cut."""
        options = [argument("tensor_parallel_size", self.tensor)]
        if self.replicas > 1:
            options.append(f"--data-parallel-size {self.replicas}")
        if self.contexts > 1:
            options.append(f"--prefill-context-parallel-size {self.contexts}")
        return " ".join(options)


def read_ranks(tensor: int, extra: Sequence[str]) -> ServedRanks:
    """Return the ranks that `--tensor-parallel-size` and the user's options for vLLM ask for."""
    return ServedRanks(
        tensor=find_whole(extra, flags.TENSOR_PARALLEL, flags.TENSOR_PARALLEL_SHORT, default=tensor),
        stages=max(1, find_whole(extra, flags.PIPELINE_PARALLEL, flags.PIPELINE_PARALLEL_SHORT)),
        replicas=max(1, find_whole(extra, flags.DATA_PARALLEL, flags.DATA_PARALLEL_SHORT)),
        contexts=max(1, find_whole(extra, flags.CONTEXT_PARALLEL, flags.CONTEXT_PARALLEL_SHORT)),
        whole_experts=is_on(extra, flags.EXPERT_PARALLEL, flags.EXPERT_PARALLEL_SHORT),
    )


def check_ranks(model: "ServedModel", ranks: ServedRanks) -> None:
    """Raise ServeError where the model does not split evenly, with what would."""
    if ranks.tensor < 1:
        raise ServeError(f"{argument('tensor_parallel_size', ranks.tensor)} is not at least 1")
    reason = _what_is_uneven(model, ranks)
    if reason is None:
        return
    sizes = range(1, model.num_heads + 1)
    advice = [str(size) for size in sizes if _what_is_uneven(model, replace(ranks, tensor=size)) is None]
    ways = [f"{argument('tensor_parallel_size')} {' or '.join(advice)}"] if advice else []
    if _what_is_uneven(model, replace(ranks, whole_experts=True)) is None:
        ways.append("--enable-expert-parallel, which keeps experts whole")
    raise ServeError(f"{ranks}: {reason}; use {', or '.join(ways) or 'fewer ranks'}")


def check_groups(model: "ServedModel", ranks: ServedRanks) -> None:
    """Raise ServeError where a vLLM on GPUs that leaves moe4's plugin out would answer wrongly."""
    if model.expert_width is None or model.group_size is None:
        return
    found = one_group_a_rank(model.expert_width, model.group_size, ranks.parts_of_experts)
    if found:
        raise ServeError(f"{found}, and VLLM_PLUGINS leaves it out: add moe4 to VLLM_PLUGINS, or unset it")


def _what_is_uneven(model: "ServedModel", ranks: ServedRanks) -> str | None:
    """Return the first thing that these ranks do not split evenly, None if there is none."""
    if model.num_heads % ranks.tensor:
        return f"{model.num_heads} attention heads do not split evenly over {ranks.tensor} ranks"
    few, many = sorted((model.num_kv_heads or ranks.tensor, ranks.tensor))
    if many % few:
        return (
            f"{model.num_kv_heads} heads of keys and values are neither a multiple nor a divisor of "
            f"{ranks.tensor} ranks"
        )
    # Expert parallelism in several engines: vLLM has each rank compute shared experts whole, for its tokens.
    shared = () if ranks.whole_experts and ranks.replicas > 1 else model.shared_widths
    for what, widths in (("dense layers", model.dense_widths), ("shared experts", shared)):
        for width in widths:
            if width % ranks.tensor:
                return f"the {what}' inner width, {width}, does not split evenly over {ranks.tensor} ranks"
    parts = ranks.parts_of_experts
    if model.expert_width is None or parts == 1:
        return None
    if splits_evenly(model.expert_width, model.group_size, parts):
        return None
    evenly = f"into whole groups of {model.group_size} codes" if model.group_size else "evenly"
    return f"the experts' inner width, {model.expert_width}, does not split {evenly} over {parts} ranks"
