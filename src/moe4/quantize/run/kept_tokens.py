"""The tokens that a run was begun with, kept in its work folder until it is finished.

A chat template may write the time, or draw something: its tokens are others each time. A run that is resumed
takes those it was begun with, if its documents, tokenizer and template are still the same files.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from moe4.calibration.corpus import Corpus
from moe4.errors import CheckpointError
from moe4.files.durable import write_file
from moe4.files.own import OwnFile
from moe4.probe.form import Kind
from moe4.probe.sequences import Chosen
from moe4.quantize.layer.running_probe import ProbePrompts
from moe4.quantize.transfer.ranks import Parcel, Ranks
from moe4.schema import Own

TOKENS_NAME = "tokens.json"
MOST_BYTES = 1 << 30
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class KeptCorpus(Own):
    """The calibration sequences, and what is said of them."""

    sequences: Annotated[list[Tokens], Field(min_length=1)]
    description: str
    recognized: str
    sample: str


class KeptSequence(Own):
    """A sequence of the expected answers."""

    kind: Kind
    tokens: Tokens


class KeptPrompts(Own):
    """The sequences of the expected answers, or why there are none."""

    chosen: list[KeptSequence]
    remarks: list[str]
    reason: str | None


class KeptTokens(Own):
    """Everything that a template or tokenizer gave when a run was begun."""

    inputs: str
    """SHA-256 of what the tokens come from."""
    corpus: KeptCorpus | None
    prompts: KeptPrompts

    def to_corpus(self) -> Corpus | None:
        """Return the calibration; None of a run without."""
        return None if self.corpus is None else Corpus(**self.corpus.model_dump())

    def to_prompts(self) -> ProbePrompts:
        """Return the sequences of the expected answers."""
        chosen = [Chosen(kind=sequence.kind, tokens=sequence.tokens) for sequence in self.prompts.chosen]
        return ProbePrompts(chosen=chosen, remarks=self.prompts.remarks, reason=self.prompts.reason)


KEPT_TOKENS = OwnFile(
    form=KeptTokens, error=CheckpointError, remedy="they are made again", max_bytes=MOST_BYTES
)


def inputs_digest(documents: str | None, recipe_digest: str, side_files: dict[str, str]) -> str:
    """Return a SHA-256 over what tokens come from: documents, the recipe, the tokenizer's files."""
    parts = [documents, recipe_digest, sorted(side_files.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def keep_tokens(work: Path, inputs: str, corpus: Corpus | None, prompts: ProbePrompts) -> None:
    """Write the tokens into a run's work folder, durably."""
    kept = KeptTokens(
        inputs=inputs,
        corpus=None
        if corpus is None
        else KeptCorpus(
            sequences=corpus.sequences,
            description=corpus.description,
            recognized=corpus.recognized,
            sample=corpus.sample,
        ),
        prompts=KeptPrompts(
            chosen=[KeptSequence(kind=chosen.kind, tokens=chosen.tokens) for chosen in prompts.chosen],
            remarks=prompts.remarks,
            reason=prompts.reason,
        ),
    )
    write_file(work / TOKENS_NAME, json.dumps(kept.as_dict()).encode(), work)


def share_kept(work: Path | None, ranks: Ranks) -> KeptTokens | None:
    """Return on every rank what rank 0, which has the work folder, finds kept in it; None if nothing is."""
    found = None if work is None else _find_kept(work)
    shared = ranks.share(Parcel(facts={} if found is None else found.as_dict())).facts
    return KeptTokens(**shared) if shared else None


def _find_kept(work: Path) -> KeptTokens | None:
    try:
        return KEPT_TOKENS.read(work / TOKENS_NAME)
    except CheckpointError:
        return None  # the tokens are made again, and must be those of the journal
