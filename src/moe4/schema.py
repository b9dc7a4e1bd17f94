"""How moe4 reads a JSON object: through a typed, frozen model whose faults become one line.

`Foreign` is for objects that others write, such as config.json: fields moe4 does not use are passed over.
`Own` is for moe4's own files, where an unknown field is a fault; `Growing` for those of them that another
version may read or change, where unknown fields are kept. All are strict: no string counts as a number, no
boolean as an integer.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from moe4.errors import Moe4Error
from moe4.escape import visible
from moe4.strict_json import JsonObject, parse_json

MAX_FAULTS = 4
"""As many are named; the rest are counted."""
SHOWN_CHARACTERS = 60
"""Of a value that is not what was expected."""

EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null or absent",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "like {pattern}",
    "string_too_short": "a string that is not empty",
}
"""pydantic's names of faults, and what each asks for."""


class Foreign(BaseModel):
    """An object of somebody else's file; unknown fields are passed over."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    def faults(self) -> Iterator[str]:
        """Yield what is wrong between fields that are right by themselves."""
        yield from ()

    @model_validator(mode="after")
    def _check_relations(self) -> Any:
        if found := list(self.faults()):
            raise PydanticCustomError("relation", "{found}", {"found": visible("; ".join(found))})
        return self


class Own(Foreign):
    """An object of one of moe4's files; unknown fields are faults."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def as_dict(self) -> JsonObject:
        """Return plain JSON types, of the fields that were given."""
        return self.model_dump(exclude_unset=True, by_alias=True)


class Growing(Own):
    """An object of one of moe4's files that other versions read and change; unknown fields are kept."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Only:
    """Accept some values of a type alone; `why` says what would go wrong with another."""

    allowed: tuple[Any, ...]
    why: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        if value in self.allowed:
            return value
        expected = " or ".join(show(choice) for choice in self.allowed)
        raise PydanticCustomError(
            "only",
            "must be {expected}, found {found}: {why}",
            {"expected": expected, "found": show(value), "why": self.why},
        )


def _refuse_null(value: Any) -> Any:
    if value is None:
        raise PydanticCustomError("only", "must not be null; leave it out if it is not known")
    return value


NotNull = AfterValidator(_refuse_null)
"""For a field that may be absent: defaults are not checked, so only a null in the file is refused."""


def more_than(name: str, value: int, most: int, other: str) -> str:
    """Return the fault of a field that exceeds another."""
    return f"{name} is {value}, more than the {most} of {other}"


def not_multiple(name: str, value: int, divisor: int, other: str) -> str:
    """Return the fault of a field that another does not divide."""
    return f"{name} is {value}, not a multiple of the {divisor} of {other}"


def show(value: Any) -> str:
    """Return a value as JSON writes it, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    text = visible(text)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def given(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not None: what is not known is left out of a file."""
    return {name: value for name, value in fields.items() if value is not None}


Model = TypeVar("Model", bound=BaseModel)


def parse(
    model: type[Model], data: Any, where: object, error: type[Moe4Error], named: Callable[[str], str] = str
) -> Model:
    """Return `data` as a `model`. Raises `error` with one line: where, which fields, expected, found.

    named: what the message calls a field of the outermost object.
    """
    try:
        return model.model_validate(data)
    except ValidationError as caught:
        line = fault_line(where, caught, named)
    raise error(line)


def fault_line(where: object, caught: ValidationError, named: Callable[[str], str] = str) -> str:
    """Return pydantic's faults as one line: where, which fields, expected, found."""
    faults = [_describe(fault, named) for fault in caught.errors(include_url=False)]
    rest = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
    return visible(f"{where}: {'; '.join(faults[:MAX_FAULTS])}{rest}")


def decode(text: str | bytes, where: object, error: type[Moe4Error]) -> Any:
    """Return what JSON says. Raises `error` with one line (strict_json.py)."""
    try:
        return parse_json(text)
    except ValueError as caught:
        raise error(visible(f"{where}: not JSON: {caught}")) from None


def _describe(fault: Any, named: Callable[[str], str]) -> str:
    """Return one of pydantic's faults as a clause that names the field."""
    name = ""
    for part in fault["loc"]:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else named(str(part))
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden":
        return f"{name} is not a field of this object"
    if kind == "relation":
        return f"{name}: {fault['msg']}" if name else str(fault["msg"])
    if kind == "only":
        return f"{name} {fault['msg']}"
    if kind in ("too_short", "too_long"):
        bound = context.get("min_length", context.get("max_length"))
        most = "at least" if kind == "too_short" else "at most"
        return f"{name} must have {most} {bound} {'entry' if bound == 1 else 'entries'}"
    whole = {key: int(value) for key, value in context.items() if value in (0.0, 1.0)}
    expected = EXPECTED.get(kind)
    if expected is None:
        return f"{name or 'the file'}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"
    expected = expected.format(**{**context, **whole})
    return f"{name or 'the file'} must be {expected}, found {show(fault['input'])}"
