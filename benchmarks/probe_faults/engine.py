"""vLLM's CPU engine inside this process, with weights that can be changed while it stands."""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from moe4.probe.check import Position, Question

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


class Engine:
    """One model in one vLLM, greedy, without prefix caching: a changed model computes everything again."""

    def __init__(self, model: Path, dtype: str) -> None:
        import vllm.model_executor.layers.utils as layers

        layers.dispatch_cpu_unquantized_gemm = _keep_weight
        from vllm import LLM

        self._llm = LLM(
            model=str(model),
            dtype=dtype,
            max_model_len=2048,
            enforce_eager=True,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            seed=0,
        )
        worker: Any = self._llm.llm_engine.model_executor.driver_worker
        self.network: Any = worker.worker.model_runner.model

    def ask(self, questions: list[Question], top: int) -> list[list[Position]]:
        """Return the answers, as a server gives them."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(temperature=0.0, max_tokens=q.max_tokens, logprobs=top, detokenize=False)
            for q in questions
        ]
        outputs = self._llm.generate(
            [{"prompt_token_ids": q.tokens} for q in questions], parameters, use_tqdm=False
        )
        return [
            [
                Position(token, {number: entry.logprob for number, entry in step.items()})
                for token, step in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True)
            ]
            for output in outputs
        ]

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Return greedy answers as token ids."""
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=max_tokens, detokenize=False)
        outputs = self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], parameters, use_tqdm=False
        )
        return [list(output.outputs[0].token_ids) for output in outputs]


def _keep_weight(layer: nn.Module, remove_weight: bool) -> None:
    """Multiply with the weight as it is, where vLLM would keep a packed copy in its place."""
    layer.cpu_linear = lambda x, weight, bias: linear(x, layer.weight, bias)


class Edits:
    """Changes to a network, each taken back by `undo`."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.layers: Any = network.model.layers
        self._undo: list[Callable[[], None]] = []

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Write `values` into a tensor in place."""
        before = tensor.detach().clone()
        self._undo.append(lambda: tensor.data.copy_(before))
        tensor.data.copy_(values)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Give an object's attribute another value."""
        own = name in vars(owner)
        before = getattr(owner, name)
        self._undo.append(
            lambda: object.__setattr__(owner, name, before) if own else object.__delattr__(owner, name)
        )
        object.__setattr__(owner, name, value)

    def wrap(self, module: nn.Module, change: Callable[..., Any]) -> None:
        """Let `change(module, arguments, output)` give the module's output."""
        handle = module.register_forward_hook(change)
        self._undo.append(handle.remove)

    def undo(self) -> None:
        """Take everything back, the last change first."""
        while self._undo:
            self._undo.pop()()

    def copy_of(self, module: nn.Module) -> Any:
        """Return a copy of a module that can be changed without the original."""
        return copy.deepcopy(module)


@contextmanager
def planted(network: Any, plant: Callable[[Edits], None]) -> Iterator[None]:
    """Plant a fault while inside."""
    edits = Edits(network)
    try:
        with torch.no_grad():
            plant(edits)
        yield
    finally:
        edits.undo()
