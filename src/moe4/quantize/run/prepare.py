"""What is known before anything is written: source, plan, tokens, the fingerprint of it all."""

from dataclasses import dataclass
from pathlib import Path

import torch

from moe4.calibration.corpus import Corpus, documents_digest, draw_documents, tokenize_drawn
from moe4.calibration.tokenizer import load_tokenizer
from moe4.checkpoint.side_files import SideFiles, find_side_files
from moe4.checkpoint.source import Checkpoint
from moe4.errors import RankError
from moe4.fingerprint import Fingerprint, RunEnvironment, describe_changes
from moe4.forward.trial import try_family
from moe4.hub.locate import Located
from moe4.model.architecture import Network
from moe4.model.fused import take_experts_apart
from moe4.quantize.layer.running_probe import ProbePrompts, RunningProbe, find_prompts
from moe4.quantize.planning.memory_bound import memory_need, require_memory
from moe4.quantize.planning.release_plan import ReleasePlan, make_plan
from moe4.quantize.planning.request import Request
from moe4.quantize.planning.resolve import resolve_for_source
from moe4.quantize.planning.source_steps import source_steps
from moe4.quantize.reporting.layer_record import software_versions
from moe4.quantize.run.kept_tokens import KeptTokens, inputs_digest
from moe4.quantize.transfer.boundary import Boundary
from moe4.quantize.transfer.ranks import Parcel, Ranks
from moe4.recipe import Recipe

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What is known before anything is written; every rank finds it for itself."""

    source: Located
    checkpoint: Checkpoint
    network: Network
    recipe: Recipe
    plan: ReleasePlan
    corpus: Corpus | None
    fingerprint: Fingerprint
    prompts: ProbePrompts
    side_files: SideFiles
    inputs: str
    """SHA-256 of what the tokens come from."""

    @property
    def num_tokens(self) -> int:
        """Tokens of calibration; 0 without."""
        return self.corpus.num_tokens if self.corpus else 0

    @property
    def steps(self) -> list[list[Path]]:
        """What of the source each shard of the release is made of."""
        has_probe = bool(self.prompts.chosen)
        embeds = has_probe or self.corpus is not None
        return source_steps(self.checkpoint, self.network, self.plan, embeds=embeds, has_probe=has_probe)

    def boundary(self, work: Path, device: torch.device) -> Boundary | None:
        """Return what goes from layer to layer; None without calibration."""
        if self.corpus is None:
            return None
        return Boundary(work, self.checkpoint, self.network, self.corpus, device)

    def running_probe(self, work: Path, ranks: Ranks, device: torch.device) -> RunningProbe | None:
        """Return what makes the expected answers on the way; None where there will be none."""
        if not self.prompts.chosen:
            return None
        return RunningProbe(self.checkpoint, self.network, ranks, device, work, self.prompts.chosen)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Texts:
    """The token ids of a run, and what they come from."""

    corpus: Corpus | None
    prompts: ProbePrompts
    documents: str | None
    inputs: str


def prepare(
    request: Request, located: Located, environment: RunEnvironment, kept: KeptTokens | None
) -> Prepared:
    """Look at everything; `kept`: what an unfinished run keeps of its tokens."""
    checkpoint = Checkpoint(located.folder, located.stream, family_as_is=request.family_as_is)
    side_files = find_side_files(checkpoint.folder, checkpoint.shards, located.elsewhere)
    try_family(checkpoint.config)
    network = Network(checkpoint.config, DTYPES[request.recipe.calibration.compute_dtype], checkpoint.specs)
    take_experts_apart(checkpoint, network)
    recipe = resolve_for_source(request.recipe, checkpoint, network)
    plan = make_plan(checkpoint, network, recipe, allow_extra=request.allow_extra)
    texts = _prepare_texts(request, located.folder, network, recipe, side_files, kept)
    fingerprint = Fingerprint(
        moe4=software_versions()["moe4"],
        source=checkpoint.digest(),
        recipe=recipe.digest(),
        documents=texts.documents,
        calibration=texts.corpus.digest() if texts.corpus else None,
        probe=texts.prompts.digest(),
        side_files=side_files.digests(),
        environment=environment,
    )
    prepared = Prepared(
        source=located,
        checkpoint=checkpoint,
        network=network,
        recipe=recipe,
        plan=plan,
        corpus=texts.corpus,
        fingerprint=fingerprint,
        prompts=texts.prompts,
        side_files=side_files,
        inputs=texts.inputs,
    )
    need = memory_need(
        plan,
        network,
        checkpoint,
        prepared.num_tokens,
        probe_tokens=texts.prompts.num_tokens,
        device=torch.device(request.device),
    )
    require_memory(need, recipe.memory_budget_bytes)
    return prepared


def _prepare_texts(
    request: Request,
    folder: Path,
    network: Network,
    recipe: Recipe,
    side_files: SideFiles,
    kept: KeptTokens | None,
) -> _Texts:
    """Return the token ids of the run: those that it keeps, if they come from the same, or new ones."""
    drawn, documents = None, None
    if recipe.method == "gptq":
        drawn = draw_documents(folder, recipe.calibration, request.calibration, request.split)
        documents = documents_digest(drawn)
    inputs = inputs_digest(documents, recipe.digest(), side_files.digests())
    if kept is not None and kept.inputs == inputs:
        return _Texts(corpus=kept.to_corpus(), prompts=kept.to_prompts(), documents=documents, inputs=inputs)
    trusted, corpus = request.trust_remote_code, None
    if drawn is not None:
        tokenizer = load_tokenizer(folder, network.config, trust_remote_code=trusted)
        corpus = tokenize_drawn(tokenizer, int(network.config.vocab_size), recipe.calibration, drawn)
    prompts = find_prompts(folder, network, trust_remote_code=trusted)
    return _Texts(corpus=corpus, prompts=prompts, documents=documents, inputs=inputs)


def check_agreement(ranks: Ranks, fingerprint: Fingerprint) -> None:
    """Raise RankError on rank 0 unless all ranks see the same version, source, recipe and calibration."""
    for rank, parcel in ranks.spread(ranks.size, lambda _: Parcel(facts=fingerprint.as_dict())):
        changed = describe_changes(fingerprint, Fingerprint(**parcel.facts))
        if changed:
            raise RankError(f"rank {rank} sees {changed} than rank 0; give every node the same files")
