"""What `--model-loader-extra-config` may say to `--load-format moe4`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from moe4.errors import ServeError
from moe4.strict_json import JsonObject

LOAD_FORMAT = "moe4"
# Of the memory that is left: vLLM's activations need some, and so do other programs.
CACHE_SHARE = 0.8
Rest = Literal["bfloat16", "int8", "int4"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderOptions:
    """Options of the loader.

    expert_cache_gb: memory for experts read with direct I/O, in 10^9 bytes; 0 maps them, and None maps them
        if they fit into memory and otherwise takes most of what is free.
    rest: the type of what is not routed experts: attention, shared experts, dense layers and the head. int4
        takes a release's own codes where it has them.
    """

    expert_cache_gb: float | None = None
    rest: Rest = "bfloat16"

    def __post_init__(self) -> None:
        budget = self.expert_cache_gb
        if budget is not None and (
            isinstance(budget, bool) or not isinstance(budget, int | float) or budget < 0
        ):
            raise ServeError(f"expert_cache_gb: expected a number of at least 0, found {budget!r}")
        if self.rest not in get_args(Rest):
            raise ServeError(f"rest: expected one of {', '.join(get_args(Rest))}, found {self.rest!r}")

    def cache_bytes(self, expert_bytes: int, room_bytes: int, num_ranks: int) -> int | None:
        """Return one rank's memory for an expert cache, None where the experts are to be mapped.

        expert_bytes, room_bytes: of all ranks' experts on disk; of the memory that the machine has for them.
        """
        if self.expert_cache_gb is not None:
            return int(self.expert_cache_gb * 1e9) or None
        if expert_bytes <= room_bytes:
            return None
        return int(room_bytes * CACHE_SHARE) // num_ranks


def take_options(extra: Mapping[str, Any]) -> tuple[LoaderOptions, JsonObject]:
    """Return our options and what is left for vLLM's loader. Raises ServeError."""
    ours = {key: value for key, value in extra.items() if key in LoaderOptions.__dataclass_fields__}
    return LoaderOptions(**ours), {key: value for key, value in extra.items() if key not in ours}
