"""`moe4 plan`: what a run would read, write, need and take, and every reason it would fail."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any, get_args

from moe4 import extras
from moe4.calibration.corpus import draw_documents, load_corpus
from moe4.checkpoint.formats.compressed import match_groups
from moe4.checkpoint.formats.find import sketch_encoded
from moe4.checkpoint.header import StoredTensor, TensorSpec
from moe4.checkpoint.index import has_weights, read_config
from moe4.checkpoint.matching import find_matching
from moe4.checkpoint.release_folder import ReleaseFolder, free_bytes, require_space
from moe4.checkpoint.report_file import explain_missing
from moe4.checkpoint.side_files import find_side_files
from moe4.checkpoint.source import Checkpoint
from moe4.errors import Moe4Error, TemplateError
from moe4.hub.locate import Located, locate_source
from moe4.machine.memory import available_memory_bytes
from moe4.model.accounting import LINEAR, Kind
from moe4.model.fused import take_experts_apart
from moe4.model.inventory import list_tensors
from moe4.model.outline import Outline, SketchedNetwork
from moe4.quantize.forecast.plan import (
    Plan,
    PlannedCalibration,
    PlannedDisk,
    PlannedMemory,
    PlannedRelease,
    PlannedSource,
    PlannedTime,
)
from moe4.quantize.planning.memory_bound import disk_need, memory_need, require_memory
from moe4.quantize.planning.release_plan import ReleasePlan, make_plan
from moe4.quantize.planning.request import Request, check_folders
from moe4.quantize.planning.resolve import group_size_warnings, resolve_for_source
from moe4.quantize.planning.source_steps import source_steps
from moe4.recipe import Recipe
from moe4.schema import given


class SketchedCheckpoint(Checkpoint):
    """A checkpoint of which only the config is there: the tensors it would have, in the dtypes it says."""

    def __init__(self, folder: Path, *, family_as_is: bool = False) -> None:
        self.folder, self.shards, self.unlisted = folder, {}, {}
        self.config = read_config(folder, family_as_is=family_as_is)
        quantization, prefix = self.config.quantization, self.config.text_prefix
        plain = {
            prefix + entry.name.replace("{expert}", str(number)): entry
            for entry in list_tensors(self.config.family)
            for number in range(entry.copies)
        }
        modules = {name.removesuffix(".weight") for name in plain if LINEAR.search(name)}
        modules -= find_matching(modules, (quantization and quantization.ignore) or [])
        groups = (quantization and quantization.config_groups) or {}
        matched = match_groups(modules, groups)
        found: dict[str, StoredTensor] = {}
        for name, entry in plain.items():
            specs = [TensorSpec(name=name, dtype="F32" if entry.float32 else "BF16", shape=entry.shape)]
            module = name.removesuffix(".weight")
            if quantization is not None and module in modules:
                group = groups[matched[module]] if module in matched else None
                specs = sketch_encoded(name, entry.shape, quantization, group)
            found.update({spec.name: StoredTensor(spec=spec, path=folder, offset=0) for spec in specs})
        self.show(found)


BUILDERS = ("torch", "transformers")  # without them the config alone says what the network is
ITEM_BYTES = {"bfloat16": 2, "float32": 4}
PROBE_TOKENS = 4096  # of the expected answers, where there is no tokenizer to count with


def forecast(request: Request, *, has_out: bool, time_it: bool) -> Plan:
    """Return the plan of a run; `problems` holds every reason it would fail.

    `request.out` is looked at and not written; only for its volume's room, unless `has_out`. `time_it` solves
    one expert of made-up weights. Of a source on the hub only headers are read. Raises CheckpointError or
    HubError if SOURCE cannot be read at all.
    """
    work = ReleaseFolder.work_folder(request.out)
    source = locate_source(request.source, request.revision, stream_to=work, headers_only=True)
    try:
        return _forecast(request, source, has_out=has_out, time_it=time_it)
    finally:
        if source.stream is not None:
            source.stream.close()


def _forecast(request: Request, source: Located, *, has_out: bool, time_it: bool) -> Plan:
    problems: list[str] = []
    is_whole = source.stream is not None or has_weights(source.folder)
    as_is = request.family_as_is
    checkpoint = (
        Checkpoint(source.folder, source.stream, family_as_is=as_is)
        if is_whole
        else SketchedCheckpoint(source.folder, family_as_is=as_is)
    )
    network = _outline(checkpoint, request.recipe)
    take_experts_apart(checkpoint, network)
    recipe = resolve_for_source(request.recipe, checkpoint, network)
    plan = make_plan(checkpoint, network, recipe, problems, allow_extra=request.allow_extra)
    calibration = _count_tokens(request, source.folder, recipe, network, problems, is_whole)
    probe_tokens, no_probe = PROBE_TOKENS, list[str]()
    if is_whole and extras.is_installed(*BUILDERS):
        from moe4.quantize.layer.running_probe import find_prompts

        trusted = request.trust_remote_code
        prompts = find_prompts(source.folder, network, trust_remote_code=trusted)
        probe_tokens = prompts.num_tokens
        no_probe = [explain_missing(prompts.reason)] if prompts.reason else []
    need = memory_need(plan, network, checkpoint, calibration.num_tokens, probe_tokens=probe_tokens)
    _note(problems, lambda: require_memory(need, recipe.memory_budget_bytes))
    disk_bytes = disk_need(
        plan, network, checkpoint, calibration.num_tokens, request.out, probe_tokens=probe_tokens
    )
    if request.stream:
        disk_bytes += checkpoint.provider.room(
            source_steps(checkpoint, network, plan, embeds=True, has_probe=True)
        )
    free = _check_out(request, has_out, disk_bytes, problems)
    timed = time_it and extras.is_installed(*BUILDERS)
    return Plan(
        ok=not problems,
        problems=problems,
        warnings=[*plan.warnings, *group_size_warnings(recipe.group_size, network), *no_probe],
        source=_source(plan, checkpoint, source, is_whole),
        release=_release(plan, checkpoint, source, recipe),
        calibration=calibration,
        memory=PlannedMemory(
            peak_bytes=need.peak_bytes,
            phases={name: need.base_bytes + extra for name, extra in need.phases.items()},
            available_bytes=available_memory_bytes(),
        ),
        disk=PlannedDisk(needed_bytes=disk_bytes, free_bytes=free),
        not_checked=_not_checked(is_whole, time_it),
        **given(time=_time(network, recipe, calibration.num_tokens) if timed else None),
    )


def _source(plan: ReleasePlan, checkpoint: Checkpoint, source: Located, is_whole: bool) -> PlannedSource:
    return PlannedSource(
        **given(hub=source.pin),
        model_type=checkpoint.config.model_type,
        has_weights=is_whole,
        num_tensors=len(checkpoint.tensors),
        num_bytes=checkpoint.num_bytes,
        num_tensors_by_kind={kind: plan.num_tensors.get(kind, 0) for kind in get_args(Kind)},
    )


def _outline(checkpoint: Checkpoint, recipe: Recipe) -> Outline:
    """Return the network that transformers builds, or without it and torch what the config says."""
    compute_dtype = recipe.calibration.compute_dtype
    if not extras.is_installed(*BUILDERS):
        return SketchedNetwork(checkpoint.config, ITEM_BYTES[compute_dtype])
    from moe4.forward.trial import try_family
    from moe4.model.architecture import Network
    from moe4.quantize.run.prepare import DTYPES

    try_family(checkpoint.config)
    return Network(checkpoint.config, DTYPES[compute_dtype], checkpoint.specs)


def _not_checked(is_whole: bool, time_it: bool) -> list[str]:
    """Return what a plan did not look into because torch or transformers is missing."""
    if extras.is_installed(*BUILDERS):
        return []
    found = ["whether transformers builds the network"]
    if is_whole:
        found.append("the tokenizer and how many tokens it makes")
    if time_it:
        found.append("the time")
    return found


def _release(plan: ReleasePlan, checkpoint: Checkpoint, source: Located, recipe: Recipe) -> PlannedRelease:
    specs = [spec for shard in plan.shards for spec in shard.specs]
    elements: Counter[str] = Counter()
    for spec in specs:
        elements[spec.dtype] += prod(spec.shape)
    return PlannedRelease(
        group_size=recipe.group_size,
        method=recipe.method,
        num_shards=len(plan.shards),
        num_tensors=len(specs),
        num_quantized=sum(spec.name.endswith(".weight_packed") for spec in specs),
        num_bytes=plan.num_bytes,
        num_elements=sum(elements.values()),
        elements=dict(elements.most_common()),
        files_left_out=list(find_side_files(source.folder, checkpoint.shards, source.elsewhere).left_out),
    )


def _count_tokens(
    request: Request, folder: Path, recipe: Recipe, network: Outline, problems: list[str], is_whole: bool
) -> PlannedCalibration:
    """Return the tokens of calibration; the most the recipe allows where there is nothing to count."""
    settings = recipe.calibration
    if recipe.method != "gptq":
        return PlannedCalibration(num_tokens=0, exact=True)
    if is_whole or request.calibration is not None:
        try:
            if not extras.is_installed(*BUILDERS):
                drawn = draw_documents(folder, settings, request.calibration, request.split)
                most = len(drawn.rows) * settings.max_sequence_tokens
                found = drawn.describe() or None
                return PlannedCalibration(num_tokens=most, exact=False, **given(recognized=found))
            corpus = load_corpus(
                folder,
                network.config,
                settings,
                request.calibration,
                split=request.split,
                trust_remote_code=request.trust_remote_code,
            )
            sample = corpus.sample if request.show_sample else None
            return PlannedCalibration(
                num_tokens=corpus.num_tokens,
                exact=True,
                **given(recognized=corpus.recognized or None, sample=sample or None),
            )
        except TemplateError:
            raise  # the expected answers would meet it again
        except Moe4Error as error:
            problems.append(str(error))
    return PlannedCalibration(num_tokens=settings.num_sequences * settings.max_sequence_tokens, exact=False)


def _check_out(request: Request, has_out: bool, disk_bytes: int, problems: list[str]) -> int:
    """Return the free bytes where the release would go."""
    if has_out:
        _note(problems, lambda: check_folders(request.source, request.out))
        _note(problems, lambda: ReleaseFolder(request.out, resume=request.resume))
    _note(problems, lambda: require_space(request.out, disk_bytes))
    return free_bytes(request.out)


def _note(problems: list[str], check: Any) -> None:
    try:
        check()
    except Moe4Error as error:
        problems.append(str(error))


def _time(network: Any, recipe: Recipe, num_tokens: int) -> PlannedTime:
    from moe4.quantize.forecast.timing import probe

    found = probe(network, recipe, num_tokens)
    layers = [shape for shape in network.experts if shape]
    num_experts = sum(shape.num_experts for shape in layers)
    seconds = num_experts * found.expert_seconds + network.num_layers * found.attention_seconds
    return PlannedTime(
        seconds=round(seconds, 1),
        expert_seconds=round(found.expert_seconds, 3),
        expert_tokens=found.expert_tokens,
        attention_seconds=round(found.attention_seconds, 3),
        num_experts=num_experts,
        num_threads=found.num_threads,
    )
