"""Token ids that a checkpoint's files name: in config.json and in generation_config.json."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from moe4.errors import CheckpointError
from moe4.schema import Foreign, parse, show
from moe4.strict_json import JsonObject

NO_PADDING = -1  # some families' pad_token_id where there is none


def _check_ids(value: Any) -> Any:
    if all(type(token) is int and token >= 0 for token in _listed(value)):
        return value
    raise PydanticCustomError(
        "only", "must be a token id, a list of them or null, found {found}", {"found": show(value)}
    )


TokenIds = Annotated[int | list[int] | None, BeforeValidator(_check_ids)]
TokenId = Annotated[int, Field(ge=0, le=1 << 24)]
PadTokenId = Annotated[int, Field(ge=NO_PADDING, le=1 << 24)]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def beyond_vocabulary(named: dict[str, int | list[int] | None], vocab_size: int) -> Iterator[str]:
    """Yield a fault for each field that names a token the model does not have."""
    for name, ids in named.items():
        beyond = [token for token in _listed(ids) if token >= vocab_size]
        if beyond:
            names = "names" if isinstance(ids, list) else "is"
            yield f"{name} {names} {beyond[0]}, not below the {vocab_size} of vocab_size"


class _GenerationConfig(Foreign):
    """How a server is told to begin, end and fill sequences."""

    bos_token_id: TokenIds = None
    eos_token_id: TokenIds = None
    pad_token_id: PadTokenId | None = None


def check_generation_config(document: JsonObject, where: object, vocab_size: int | None) -> None:
    """Refuse a generation_config.json that names a token the model does not have. Raises CheckpointError."""
    config = parse(_GenerationConfig, document, where, CheckpointError)
    faults = list(beyond_vocabulary(dict(config), vocab_size)) if vocab_size else []
    if faults:
        raise CheckpointError(f"{where}: {'; '.join(faults)} in config.json")
