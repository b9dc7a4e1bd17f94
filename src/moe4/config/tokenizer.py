"""What moe4 reads of a tokenizer_config.json."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from moe4.errors import CheckpointError
from moe4.schema import Foreign, parse, show
from moe4.strict_json import JsonObject

TOKENIZER_NAME = "tokenizer.json"


def _to_text(template: Any) -> Any:
    """Return a chat template as text, or several by name as one."""
    if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        return "\n".join(str(entry.get("template")) for entry in template)
    if template is not None and not isinstance(template, str):
        raise PydanticCustomError(
            "only", "must be a string or a list of named templates, found {found}", {"found": show(template)}
        )
    return template


def _to_object(auto_map: Any) -> Any:
    """Return the classes by what loads them; a list alone is an older form of the tokenizer's."""
    return {"AutoTokenizer": auto_map} if isinstance(auto_map, list) else auto_map


class TokenizerConfig(Foreign):
    """chat_template: the text of all templates. auto_map: the classes that come as Python code."""

    tokenizer_class: str | None = None
    auto_map: Annotated[JsonObject | None, BeforeValidator(_to_object)] = None
    chat_template: Annotated[str | None, BeforeValidator(_to_text)] = None

    @property
    def code_class(self) -> str | None:
        """`module.Class` of a tokenizer that comes as Python code; of two the one that transformers takes."""
        named = (self.auto_map or {}).get("AutoTokenizer")
        names = [name for name in reversed(named if isinstance(named, list) else [named]) if name]
        return str(names[0]) if names else None

    @property
    def is_code(self) -> bool:
        """Whether a tokenizer comes as Python code."""
        return self.code_class is not None

    def needs_own_code(self, folder: Path) -> bool:
        """Say whether the tokenizer in the folder comes as Python code and in no other form.

        transformers would read its vocabulary all the same, and split text in another way.
        """
        return self.is_code and not (folder / TOKENIZER_NAME).is_file()


def parse_tokenizer_config(document: JsonObject, where: object) -> TokenizerConfig:
    """Return tokenizer_config.json's object as a typed value. Raises CheckpointError."""
    return parse(TokenizerConfig, document, where, CheckpointError)
