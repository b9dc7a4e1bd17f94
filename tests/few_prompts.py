"""Have this process' runs ask the probe's questions of a few prompts, where those of all are not the subject.

Half of a small run's time goes into the answers that are expected to 64 prompts.
"""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from moe4.probe import sequences


def ask_few_prompts(set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace the built-in prompts by some of each kind; `set_attribute` may be monkeypatch's."""
    built_in = json.loads(sequences.PROMPTS.read_text(encoding="utf-8"))
    few = {**built_in, "chats": built_in["chats"][:2], "tool_chats": built_in["tool_chats"][:1]}
    text = json.dumps(few)
    file = SimpleNamespace(read_text=lambda encoding: text, stat=lambda: SimpleNamespace(st_size=len(text)))
    set_attribute(sequences, "PROMPTS", file)
    set_attribute(sequences, "TEXT_LENGTHS", (24, 8))
    set_attribute(sequences, "NUM_SEQUENCES", 8)
