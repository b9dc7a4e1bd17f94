"""The harness' model, started only when a question has no answer yet, and asked in portions."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import LM
from tqdm import tqdm

from moe4.evaluate.harness.cache import AnswerCache, answer_key

PORTION = 256  # requests between two writes of the cache: enough to fill vLLM's batches


class CachedModel(LM):  # type: ignore[misc]  # lm_eval has no types
    """Answers from the cache where it has them; `start` gives the model that answers the others."""

    def __init__(self, start: Callable[[], Any], cache: AnswerCache | None) -> None:
        super().__init__()
        self._start, self._cache = start, cache
        self._model: Any = None

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return self._answer("generate_until", requests)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(float(value), bool(greedy)) for value, greedy in self._answer("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        return [float(value) for value in self._answer("loglikelihood_rolling", requests)]

    def _answer(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        if self._cache is None:
            return list(getattr(self._started(), kind)(list(requests)))
        seen: Counter[str] = Counter()
        keys = []
        for request in requests:
            key = answer_key(kind, request.args, 0)
            keys.append(answer_key(kind, request.args, seen[key]))
            seen[key] += 1
        missing = [place for place, key in enumerate(keys) if key not in self._cache]
        with tqdm(total=len(keys), initial=len(keys) - len(missing), desc=kind) as bar:
            for start in range(0, len(missing), PORTION):
                portion = missing[start : start + PORTION]
                answers = getattr(self._started(), kind)(
                    [requests[place] for place in portion], disable_tqdm=True
                )
                self._cache.add((keys[place], answer) for place, answer in zip(portion, answers, strict=True))
                bar.update(len(portion))
        return [self._cache[key] for key in keys]

    def _started(self) -> Any:
        if self._model is None:
            self._model = self._start()
        return self._model
