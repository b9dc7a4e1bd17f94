"""What all API functions share: arguments checked against their types, and the errors of moe4.errors."""

import contextlib
import functools
import inspect
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, create_model
from pydantic_core import PydanticCustomError

from moe4.api.refusals import describe_refusal, is_refusal
from moe4.arguments import argument, called
from moe4.errors import AccessError, ArgumentError
from moe4.progress import OnProgress, Pace, ignore
from moe4.recipe import Recipe, RecipeLike
from moe4.schema import parse, show

if TYPE_CHECKING:
    from moe4.hub.locate import Located

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("moe4")
logger.addHandler(logging.NullHandler())  # without it Python would print warnings

CONFIG = ConfigDict(strict=True, arbitrary_types_allowed=True, protected_namespaces=())


def _check_path(value: Any) -> Any:
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise _refusal("must be a path: a string or a pathlib.Path", value)
    return _check_text(os.fspath(value)) and value


def _check_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise _refusal("must be a string", value)
    if not value:
        raise PydanticCustomError("only", "is empty; give a value, or leave it out")
    if "\0" in value:
        raise PydanticCustomError("only", "holds a null character")
    return value


def _check_recipe(value: Any) -> Any:
    if isinstance(value, Recipe | Mapping):
        return value
    if not isinstance(value, str | os.PathLike):
        raise _refusal("must be a Recipe, a dict or the path of a TOML file", value)
    return _check_path(value)


def _refusal(text: str, value: Any) -> PydanticCustomError:
    return PydanticCustomError("only", "{text}, found {found}", {"text": text, "found": show(value)})


AnyPath: TypeAlias = str | os.PathLike[str]
PathLike: TypeAlias = Annotated[AnyPath, PlainValidator(_check_path)]
"""A file or folder. An empty string is an error, not the current folder."""
Source: TypeAlias = PathLike
"""A checkpoint or release: a folder, or OWNER/NAME[@REVISION] on the hub; see `open_source`."""
RecipeArgument: TypeAlias = Annotated[RecipeLike, PlainValidator(_check_recipe)]
Text: TypeAlias = Annotated[str, PlainValidator(_check_text)]
Positive: TypeAlias = Annotated[int, Field(ge=1)]


def say(text: str) -> None:
    """Log a message: warnings and notes as warnings, anything else as information."""
    logger.log(logging.WARNING if text.startswith(("warning:", "note:")) else logging.INFO, "%s", text)


def open_source(source: AnyPath, revision: str | None = None, on_progress: OnProgress = ignore) -> Path:
    """Return the folder of a checkpoint or release; download it whole if it is on the hub.

    Raises HubError or DiskSpaceError.
    """
    from moe4.hub.locate import locate

    return locate(
        os.fspath(source),
        revision,
        say=lambda text: say(f"moe4: {text}"),
        on_progress=Pace(on_progress, "downloading").count,
    )


@contextlib.contextmanager
def stream_source(source: AnyPath) -> "Iterator[Located]":
    """Give a checkpoint on the hub whose shards are fetched as they are read, into a temporary folder.

    Raises HubError.
    """
    from moe4.hub.locate import locate_source

    with tempfile.TemporaryDirectory(prefix="moe4-source-") as folder:
        located = locate_source(os.fspath(source), stream_to=Path(folder))
        try:
            yield located
        finally:
            if located.stream is not None:
                located.stream.close()


def optional_path(path: AnyPath | None) -> Path | None:
    """Return a Path; None stays None."""
    return None if path is None else Path(path)


def paths(given: Sequence[AnyPath]) -> tuple[Path, ...]:
    """Return each as a Path."""
    return tuple(map(Path, given))


def operation(function: Callable[P, R]) -> Callable[P, R]:
    """Check a function's arguments against their annotations before it runs.

    A wrong value raises ArgumentError with one line; a call that the system refuses raises AccessError. An
    unknown argument raises TypeError, as everywhere in Python.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = check_arguments(function, signature.bind(*args, **kwargs).arguments)
        with naming_refusals():
            return function(**given)  # type: ignore[call-arg]

    # `import moe4.serve.model as model` looks for `model` in moe4.serve, a function, and, as it is not
    # there, in the module that the function's __name__ names.
    checked.__name__ = f"moe4.{function.__name__}"
    return checked


def check_arguments(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the checked arguments. Raises ArgumentError."""
    checked = parse(_model(function), given, called(function.__name__), ArgumentError, argument)
    return {name: getattr(checked, name) for name in given}


@contextlib.contextmanager
def naming_refusals() -> Iterator[None]:
    """Turn an OSError that the system caused into an AccessError."""
    try:
        yield
    except OSError as error:
        if not is_refusal(error):
            raise
        raise AccessError(describe_refusal(error)) from error


@functools.cache
def _model(function: Callable[..., Any]) -> type[BaseModel]:
    """Return a model with a field for each argument."""
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (parameter.annotation, default)
    return create_model(function.__name__, __config__=CONFIG, **fields)
