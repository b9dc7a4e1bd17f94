"""The libraries that moe4's core does without, and the one line that says that one of them is missing.

`moe4` alone plans, sizes, deploys, lints and asks servers. What needs more has an extra in
pyproject.toml, which tests/packaging holds this table to.
"""

import importlib.util
from dataclasses import dataclass

from moe4.errors import MissingDependencyError

# Module -> what it is called, and the extras that bring it.
LIBRARIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "compressed_tensors": ("compressed-tensors", ("quantize",)),
    "datasets": ("datasets", ("data",)),
    "k2tiny": ("the package of the reference model", ("reference",)),
    "lm_eval": ("lm-evaluation-harness", ("eval",)),
    "openai": ("the openai package", ("chat",)),
    "psutil": ("psutil", ("quantize",)),
    "pyarrow": ("pyarrow", ("data",)),
    "safetensors": ("safetensors", ("quantize",)),
    "tiktoken": ("tiktoken", ("quantize",)),
    "torch": ("PyTorch", ("quantize",)),
    "tqdm": ("tqdm", ("eval",)),
    "transformers": ("transformers", ("quantize",)),
    "vllm": ("vLLM", ("cpu", "gpu")),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """Libraries that are not installed, as people call them, and the command that installs them."""

    libraries: tuple[str, ...]
    command: str


def is_installed(*modules: str) -> bool:
    """Say whether all of these can be imported, without importing them."""
    return all(map(_is_there, modules))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a finder refuses it, or something half imported stands in its place
        return False


def require(*modules: str, needed_by: str = "") -> None:
    """Raise MissingDependencyError for the first of these that is not installed.

    needed_by: what cannot be done without it, where the command alone does not tell.
    """
    for module in modules:
        if not is_installed(module):
            raise _missing(module, needed_by)


def install(module: str) -> str:
    """Return the command that installs the extra a library comes with."""
    first, *others = LIBRARIES[module][1]
    command = f"pip install 'moe4[{first}]'"
    return command + "".join(f", or 'moe4[{other}]' with NVIDIA GPUs" for other in others)


def list_missing() -> list[Missing]:
    """Return the libraries of all extras that are not installed, those of one command together."""
    found: dict[str, list[str]] = {}
    for module, (name, _) in LIBRARIES.items():
        if not is_installed(module):
            found.setdefault(install(module), []).append(name)
    return [Missing(libraries=tuple(names), command=command) for command, names in found.items()]


def name_missing(error: ImportError) -> MissingDependencyError | None:
    """Return the error that a failed import is if an extra would have brought the library; else None."""
    module = error.name or ""
    if not isinstance(error, ModuleNotFoundError) or module not in LIBRARIES:
        return None
    return _missing(module)


def _missing(module: str, needed_by: str = "") -> MissingDependencyError:
    name = LIBRARIES[module][0]
    subject = f"{needed_by} needs {name}, which" if needed_by else name
    return MissingDependencyError(f"{subject} is not installed: {install(module)}")
