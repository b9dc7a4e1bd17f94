"""What is quantized and how: frozen values, read from TOML.

    method = "gptq"                 # or "rtn", round to nearest; "copy", keep the source's INT4 codes
    targets = ["experts"]           # also "attention", "shared_experts", "dense_mlps"
    group_size = "auto"             # or 32, 64, 128: number of codes that share a scale
    memory_budget = ""              # such as "4GiB": refuse a run that may need more

    [gptq]                          # see `Gptq`
    [calibration]                   # see `Calibration`

Unknown keys are errors. The release records the resolved recipe and its hash.
"""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Self,
    TypeAlias,
    TypeVar,
    dataclass_transform,
    get_args,
)

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from moe4.arguments import argument
from moe4.errors import RecipeError
from moe4.schema import Own, fault_line, parse, show
from moe4.strict_json import JsonObject

Method = Literal["gptq", "rtn", "copy"]
Target = Literal["experts", "attention", "shared_experts", "dense_mlps"]
HessianWeighting = Literal["none", "gate"]
ComputeDtype = Literal["bfloat16", "float32"]

Part = TypeVar("Part", "Recipe", "Calibration")

SIZE = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]?i?b|)", re.IGNORECASE)
UNITS = {"": 1, "b": 1, "ib": 1}
UNITS.update({f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)})
UNITS.update({f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)})
GROUP_SIZES = (32, 64, 128)
AUTO_GROUP_SIZE = 0
MOST = 1 << 31
MAX_FILE_BYTES = 1 << 20
ALL_TARGETS: tuple[Target, ...] = get_args(Target)


if TYPE_CHECKING:  # pydantic exports no name of it
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(Own)


@dataclass_transform(kw_only_default=True, field_specifiers=(Field,))
class _Checked(ModelMetaclass):
    """Raises RecipeError with one line for a wrong value, whether it comes from Python or a file."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # of a metaclass
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as caught:
            raise RecipeError(fault_line(cls.__name__, caught)) from None


class Settings(Own, metaclass=_Checked):
    """A table of a recipe. The error for an unknown key lists the known ones."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse, because checked values do not change. Raises RecipeError."""
        raise RecipeError(f"{type(self).__name__}.{name} cannot be set: make another, with replace()")

    def replace(self, **changes: Any) -> Self:
        """Return a copy with these values changed. Raises RecipeError."""
        return parse(type(self), {**dict(self), **changes}, type(self).__name__, RecipeError)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        unknown = [key for key in data if key not in cls.model_fields] if isinstance(data, dict) else []
        if unknown:
            text = f"unknown key {unknown[0]!s:.60}; known keys are {', '.join(cls.model_fields)}"
            raise PydanticCustomError("relation", "{found}", {"found": text})
        return data


def _read_group_size(value: Any) -> Any:
    return AUTO_GROUP_SIZE if value == "auto" else value


def _check_group_size(value: int) -> int:
    if value not in (*GROUP_SIZES, AUTO_GROUP_SIZE):
        raise PydanticCustomError(
            "only", "must be one of 32, 64, 128 or auto, found {found}", {"found": show(value)}
        )
    return value


GroupSize = Annotated[int, BeforeValidator(_read_group_size), AfterValidator(_check_group_size)]


class Gptq(Settings):
    """How `method = "gptq"` solves a matrix."""

    activation_order: bool = True
    """Quantize the columns with the largest activations first."""
    signed_scales: bool = True
    """Let a scale be negative, so that the extra code, -8, extends the longer side of the group."""
    scale_candidates: Annotated[int, Field(ge=1, le=1000)] = 32
    """Number of shrink factors to try for each group's scale; 1 keeps the full range."""
    scale_shrink: Annotated[float, Field(ge=0.1, le=1)] = 0.65
    """The smallest shrink factor to try; the largest is 1."""
    descent_sweeps: Annotated[int, Field(ge=0, le=100)] = 2
    """Passes of coordinate descent over codes and scales after the solve; 0 leaves both as solved."""
    damping: Annotated[float, Field(gt=0, le=1)] = 0.03
    """What is added to the Hessian's diagonal, as a share of its mean."""
    shrinkage_tokens: Annotated[int, Field(ge=0, le=1 << 20)] = 512
    """Weight of the layer's pooled Hessian beside an expert's own, in tokens."""
    hessian_weighting: HessianWeighting = "none"
    """`gate` weights every token by its squared gate weight."""


class Calibration(Settings):
    """Which part of the calibration data to use, and how. Only `method = "gptq"` uses any."""

    num_sequences: Annotated[int, Field(ge=1, le=MOST)] = 256
    """Number of documents to draw, in an order that the seed decides; all of them if there are fewer."""
    max_sequence_tokens: Annotated[int, Field(ge=1, le=MOST)] = 1024
    """Cut documents to this length."""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    compute_dtype: ComputeDtype = "bfloat16"
    """Type of the hidden states and weights in the forward pass; releases are served in bfloat16."""


class Recipe(Settings):
    """What is quantized and how."""

    method: Method = "gptq"
    targets: Annotated[tuple[Target, ...], Field(strict=False)] = ("experts",)
    group_size: GroupSize = AUTO_GROUP_SIZE
    """Number of codes that share a scale. A run resolves `auto` to the largest size that divides every
    quantized weight and leaves at least two groups in the experts' inner width."""
    gptq: Gptq = Gptq()
    calibration: Calibration = Calibration()
    memory_budget: str = ""
    """The most memory that a process may need. Not in the digest, because it does not affect the release."""

    def faults(self) -> Iterator[str]:
        """Yield faults: targets that contradict the rules, and a budget that is not a size."""
        if "experts" not in self.targets:
            yield "targets must contain 'experts'"
        if len(set(self.targets)) != len(self.targets):
            yield "targets lists something twice"
        if self.memory_budget and _size(self.memory_budget) is None:
            yield f"memory_budget {_size_fault(self.memory_budget)}"

    def digest(self) -> str:
        """Return the SHA-256 of the resolved recipe, in hexadecimal."""
        resolved = self.to_dict()
        del resolved["memory_budget"]
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()

    @property
    def memory_budget_bytes(self) -> int | None:
        """The budget in bytes; None if there is none."""
        return parse_size(self.memory_budget, "memory_budget") if self.memory_budget else None

    def to_dict(self) -> JsonObject:
        """Return the resolved recipe as plain JSON types, in the order of the fields."""
        resolved = self.model_dump()
        resolved["targets"] = list(self.targets)
        resolved["group_size"] = self.group_size or "auto"
        return resolved

    @staticmethod
    def from_dict(data: JsonObject, where: str = "recipe") -> "Recipe":
        """Build a recipe from parsed TOML or JSON. Raises RecipeError, with `where` in the message."""
        return parse(Recipe, data, where, RecipeError)


RecipeLike: TypeAlias = Recipe | Mapping[str, Any] | str | os.PathLike[str]
"""A recipe, a dict of the keys that differ from the default, or a TOML file."""


def parse_size(text: str, where: str) -> int:
    """Return the bytes of a size such as `4GiB`, `500 MB` or `1e9`. Raises RecipeError, naming `where`."""
    size = _size(text)
    if size is None:
        raise RecipeError(f"{where} {_size_fault(text)}")
    return size


def _size(text: str) -> int | None:
    match = SIZE.fullmatch(text.strip())
    size = float(match[1]) * UNITS[match[2].lower()] if match else 0.0
    return int(size) if 1 <= size < 1 << 63 else None


def _size_fault(text: str) -> str:
    return f"must be a size such as 4GiB or 500MB, found {show(text)}"


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a TOML file. Raises RecipeError."""
    try:
        if path.exists() and not path.is_file():  # a pipe would have us wait
            raise RecipeError(f"recipe {path} is not a regular file")
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise RecipeError(f"recipe {path} has more than {MAX_FILE_BYTES} bytes; a recipe is smaller")
        data = tomllib.loads(text.decode())
    except FileNotFoundError:
        raise RecipeError(f"recipe {path} does not exist") from None
    except RecursionError:
        raise RecipeError(f"recipe {path} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from None
    return Recipe.from_dict(data, where=str(path))


def override(recipe: Part, **changes: Any) -> Part:
    """Return a recipe, or a part of one, with the changes that are not None. Raises RecipeError."""
    given = {key: value for key, value in changes.items() if value is not None}
    if not given:
        return recipe
    return parse(type(recipe), {**dict(recipe), **given}, "options", RecipeError, argument)


def resolve_recipe(
    given: RecipeLike | None = None,
    *,
    method: str | None = None,
    group_size: int | str | None = None,
    targets: str | Sequence[str] | None = None,
    num_sequences: int | None = None,
    sequence_tokens: int | None = None,
    seed: int | None = None,
    memory_budget: str | None = None,
) -> Recipe:
    """Return the given recipe, or the default one, with every other argument that is not None set in it.

    given: a Recipe, a dict of the keys that differ from the default, or a TOML file. method: gptq, rtn or
    copy. group_size: 32, 64, 128 or "auto". targets: names, or "all". num_sequences, sequence_tokens, seed:
    of the calibration. memory_budget: such as "4GiB". Raises RecipeError.

        >>> moe4.resolve_recipe({"group_size": 32}, method="rtn").method
        'rtn'
    """
    if given is None:
        recipe = Recipe()
    elif isinstance(given, Recipe):
        recipe = given
    elif isinstance(given, Mapping):
        recipe = Recipe.from_dict(dict(given))
    else:
        recipe = load_recipe(Path(given))
    if isinstance(targets, str):
        targets = ALL_TARGETS if targets == "all" else (targets,)
    calibration = override(
        recipe.calibration, num_sequences=num_sequences, max_sequence_tokens=sequence_tokens, seed=seed
    )
    return override(
        recipe,
        method=method,
        group_size=group_size,
        targets=targets,
        calibration=calibration,
        memory_budget=memory_budget,
    )
