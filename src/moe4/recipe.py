"""What is quantized and how: frozen dataclasses, read from TOML.

    method = "gptq"                 # or "rtn", round to nearest
    targets = ["experts"]           # also "attention", "shared_experts", "dense_mlps"
    group_size = "auto"             # or 32, 64, 128: codes that share one scale
    memory_budget = ""              # such as "4GiB": refuse to begin what might need more

    [gptq]                          # see `Gptq`
    [calibration]                   # see `Calibration`

Unknown keys are errors. A resolved recipe has a hash that is saved with what it made.
"""

import hashlib
import json
import re
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from moe4.errors import RecipeError

Method = Literal["gptq", "rtn"]
Target = Literal["experts", "attention", "shared_experts", "dense_mlps"]
HessianWeighting = Literal["none", "gate"]
ComputeDtype = Literal["bfloat16", "float32"]

Settings = TypeVar("Settings", "Recipe", "Calibration")

SIZE = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]?i?b|)", re.IGNORECASE)
UNITS = {"": 1, "b": 1, "ib": 1}
UNITS.update({f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)})
UNITS.update({f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)})
GROUP_SIZES = (32, 64, 128)
AUTO_GROUP_SIZE = 0
MOST = 1 << 31
MAX_FILE_BYTES = 1 << 20
ALL_TARGETS: tuple[Target, ...] = get_args(Target)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RecipeError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gptq:
    """How `method = "gptq"` solves a matrix."""

    activation_order: bool = True
    """Quantize the columns with the largest activations first."""
    signed_scales: bool = True
    """Let a scale be negative, so that the code -8 serves whichever side of the group is longer."""
    scale_candidates: int = 32
    """Shrink factors tried for each group's scale; 1 takes the full range as it is."""
    scale_shrink: float = 0.65
    """The smallest shrink factor tried; the largest is 1."""
    descent_sweeps: int = 2
    """Passes of coordinate descent over codes and scales after the solve; 0 leaves both as solved."""
    damping: float = 0.03
    """Added to the Hessian's diagonal, as a share of its mean."""
    shrinkage_tokens: int = 512
    """How many tokens the layer's pooled Hessian counts for beside an expert's own."""
    hessian_weighting: HessianWeighting = "none"
    """`gate` weights every token by its squared gate weight."""

    def __post_init__(self) -> None:
        _require(1 <= self.scale_candidates <= 1000, "gptq.scale_candidates must lie in 1..1000")
        _require(0.1 <= self.scale_shrink <= 1.0, "gptq.scale_shrink must lie in 0.1..1.0")
        _require(0 <= self.descent_sweeps <= 100, "gptq.descent_sweeps must lie in 0..100")
        _require(0.0 < self.damping <= 1.0, "gptq.damping must lie above 0 and not above 1")
        _require(0 <= self.shrinkage_tokens <= 1 << 20, "gptq.shrinkage_tokens must lie in 0..1048576")


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How much of the calibration data is used; `method = "rtn"` uses none."""

    num_sequences: int = 256
    """Documents drawn from the data, in seeded order; fewer if it holds fewer."""
    max_sequence_tokens: int = 1024
    """Longer documents are cut."""
    seed: int = 0
    compute_dtype: ComputeDtype = "bfloat16"
    """Of hidden states and of the weights they meet; bfloat16 is what the release is served in."""

    def __post_init__(self) -> None:
        for name in ("num_sequences", "max_sequence_tokens"):
            _require(getattr(self, name) >= 1, f"calibration.{name} must be at least 1")
            _require(getattr(self, name) <= MOST, f"calibration.{name} must be at most {MOST}")
        _require(0 <= self.seed < 1 << 32, "calibration.seed must lie in 0..4294967295")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What is quantized and how."""

    method: Method = "gptq"
    targets: tuple[Target, ...] = ("experts",)
    group_size: int = AUTO_GROUP_SIZE
    """Codes that share a scale; `auto` in files. A run resolves that to the largest size that divides every
    quantized weight and leaves the experts' inner width two groups or more."""
    gptq: Gptq = field(default_factory=Gptq)
    calibration: Calibration = field(default_factory=Calibration)
    memory_budget: str = ""
    """The most memory a process may need; not part of the digest, for it changes no byte of a release."""

    def __post_init__(self) -> None:
        if self.memory_budget:
            parse_size(self.memory_budget, "memory_budget")
        _require(
            self.group_size in (*GROUP_SIZES, AUTO_GROUP_SIZE),
            f"group_size must be one of 32, 64, 128 or auto, found {self.group_size}",
        )
        _require("experts" in self.targets, "targets must contain 'experts'")
        _require(len(set(self.targets)) == len(self.targets), "targets names one thing twice")

    def digest(self) -> str:
        """Return the SHA-256 of the resolved recipe, in hexadecimal."""
        resolved = self.to_dict()
        del resolved["memory_budget"]
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()

    @property
    def memory_budget_bytes(self) -> int | None:
        """The budget in bytes; None if there is none."""
        return parse_size(self.memory_budget, "memory_budget") if self.memory_budget else None

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved recipe as plain JSON types, in the order of the fields."""
        resolved = asdict(self)
        resolved["targets"] = list(self.targets)
        resolved["group_size"] = self.group_size or "auto"
        return resolved

    @staticmethod
    def from_dict(data: dict[str, Any], where: str = "recipe") -> "Recipe":
        """Build a recipe from parsed TOML or JSON. Raises RecipeError, with `where` in the message."""
        if data.get("group_size") == "auto":
            data = {**data, "group_size": AUTO_GROUP_SIZE}
        recipe = _build(Recipe, data, where, prefix="")
        assert isinstance(recipe, Recipe)
        return recipe


def parse_size(text: str, where: str) -> int:
    """Return the bytes that a size such as `4GiB`, `500 MB` or `1e9` means. Raises RecipeError."""
    match = SIZE.fullmatch(text.strip())
    size = float(match[1]) * UNITS[match[2].lower()] if match else 0.0
    if not 1 <= size < 1 << 63:
        raise RecipeError(f"{where} must be a size such as 4GiB or 500MB, found {text!r:.60}")
    return int(size)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a TOML file. Raises RecipeError."""
    try:
        if path.exists() and not path.is_file():  # a pipe would have us wait
            raise RecipeError(f"recipe {path} is not a regular file")
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise RecipeError(f"recipe {path} has more than {MAX_FILE_BYTES} bytes; it cannot be one")
        data = tomllib.loads(text.decode())
    except FileNotFoundError:
        raise RecipeError(f"recipe {path} does not exist") from None
    except RecursionError:
        raise RecipeError(f"recipe {path} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from None
    return Recipe.from_dict(data, where=str(path))


def override(recipe: Settings, **changes: Any) -> Settings:
    """Return the recipe, or a part of one, with the changes that are not None."""
    return replace(recipe, **{key: value for key, value in changes.items() if value is not None})


def _build(kind: type, data: Any, where: str, prefix: str) -> Any:
    """Build a dataclass from a mapping, checking every key and type."""
    if not isinstance(data, dict):
        raise RecipeError(f"{where}: {prefix.rstrip('.')} must be a table, found {data!r}")
    hints = get_type_hints(kind)
    known = [item.name for item in fields(kind)]
    for key in data:
        if key not in known:
            raise RecipeError(f"{where}: unknown key {prefix}{key}; known keys are {', '.join(known)}")
    values = {key: _convert(hints[key], value, where, prefix + key) for key, value in data.items()}
    try:
        return kind(**values)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str, name: str) -> Any:
    """Check one value against its annotation; whole numbers may stand for floats."""
    origin = get_origin(hint)
    if hint in (Gptq, Calibration):
        return _build(hint, value, where, prefix=f"{name}.")
    if origin is Literal:
        choices = get_args(hint)
        if value in choices and isinstance(value, str):
            return value
        raise RecipeError(f"{where}: {name} must be one of {', '.join(choices)}, found {value!r}")
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_convert(get_args(hint)[0], item, where, name) for item in value)
        raise RecipeError(f"{where}: {name} must be a list, found {value!r}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise RecipeError(f"{where}: {name} must be of type {hint.__name__}, found {value!r}")
    return value
