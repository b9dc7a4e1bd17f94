"""`moe4 quantize`: layer after layer from a source checkpoint to a release, resumable at every layer.

A layer is committed in this order, each step durable before the next: its shard, the input of the next layer,
its record, its line in the journal. A run that is killed anywhere continues after the last line, and what it
writes is byte for byte what it would have written.
"""

import errno
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moe4.calibration.activations import ActivationStore
from moe4.calibration.corpus import Corpus, load_corpus
from moe4.checkpoint.durable import file_sha256, publish, write_file
from moe4.checkpoint.journal import CommittedShard, Journal
from moe4.checkpoint.release import REPORT_NAME, ReleaseFolder, State, dump_json, format_bytes
from moe4.checkpoint.shard import ShardWriter
from moe4.checkpoint.source import Checkpoint, read_json_object
from moe4.errors import DiskSpaceError, OutputError, RecipeError, ResumeError
from moe4.model.architecture import Network
from moe4.quantize.audit import LayerRecord, peak_memory_bytes, software_versions, summarize
from moe4.quantize.bench import Workbench, copy_tensors
from moe4.quantize.layer import quantize_layer_gptq, quantize_layer_rtn
from moe4.quantize.plan import Plan, ShardPlan, make_plan, quantization_config
from moe4.quantize.progress import ProgressReporter
from moe4.quantize.ranks import Ranks
from moe4.recipe import Recipe

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the user asked for."""

    source: Path
    out: Path
    recipe: Recipe
    calibration: Path | None = None
    resume: bool = False
    device: str = "cpu"
    trust_remote_code: bool = False


def quantize(request: Request, progress: ProgressReporter) -> dict[str, Any]:
    """Quantize a checkpoint; return the report. Raises Moe4Error's children; nothing is left half written."""
    try:
        return _quantize(request, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(
                f"{request.out}: the volume is full; free some space and run again with --resume"
            ) from None
        raise


def _quantize(request: Request, progress: ProgressReporter) -> dict[str, Any]:
    _check_folders(request.source, request.out)
    device = _check_device(request.device)
    folder = ReleaseFolder(request.out, resume=request.resume)
    recipe = request.recipe
    checkpoint = Checkpoint(request.source)
    network = Network(checkpoint.config, DTYPES[recipe.calibration.compute_dtype])
    plan = make_plan(checkpoint, network, recipe)
    corpus = None
    if recipe.method == "gptq":
        corpus = load_corpus(
            request.source,
            network.config,
            recipe.calibration,
            request.calibration,
            trust_remote_code=request.trust_remote_code,
        )
    begin = _fingerprint(checkpoint, recipe, corpus)
    if folder.state is State.FINISHED:
        return _already_finished(folder, begin)
    folder.require_space(_needed_bytes(plan, network, checkpoint, corpus, folder))
    journal = folder.open()
    try:
        if journal.begin is None:
            journal.start({**begin, "threads": torch.get_num_threads()})
        else:
            journal.match(begin)
            journal.check_shards(request.out)
            torch.set_num_threads(int(journal.begin["threads"]))
        bench = Workbench(
            checkpoint=checkpoint,
            network=network,
            recipe=recipe,
            device=device,
            ranks=Ranks(),
            step_done=progress.step,
        )
        run = _Run(bench, folder, journal, plan, corpus, progress)
        run.commit_shards()
        return run.finish(begin)
    finally:
        folder.close()


class _Run:
    """One run, from the first layer that is not committed."""

    def __init__(
        self,
        bench: Workbench,
        folder: ReleaseFolder,
        journal: Journal,
        plan: Plan,
        corpus: Corpus | None,
        progress: ProgressReporter,
    ) -> None:
        self.bench, self.folder, self.journal = bench, folder, journal
        self.plan, self.corpus, self.progress = plan, corpus, progress
        self.checkpoint, self.network, self.recipe = bench.checkpoint, bench.network, bench.recipe

    def commit_shards(self) -> None:
        """Commit every shard that is not committed yet."""
        num_done = len(self.journal.shards)
        steps = [1 + (shard.experts.num_experts if shard.experts else 0) for shard in self.plan.shards]
        if num_done:
            self.progress.say(f"continuing after {num_done} of {len(steps)} shards")
        self.progress.begin(sum(steps), sum(steps[:num_done]))
        for shard in self.plan.shards[num_done:]:
            started = time.monotonic()
            if shard.layer is None:
                self._write_rest(shard)
            else:
                record = self._run_layer(shard, started)
                self.progress.layer_done(record, self.network.num_layers, time.monotonic() - started)

    def finish(self, begin: dict[str, Any]) -> dict[str, Any]:
        """Write everything that is not a shard and remove the work folder; return the report."""
        side_files = self.folder.copy_side_files(self.checkpoint)
        report = self._report(begin, side_files)
        self.folder.write_json(REPORT_NAME, report)
        config = {key: value for key, value in self.checkpoint.config.items() if key != "quantization_config"}
        config["quantization_config"] = quantization_config(self.recipe, self.plan)
        self.folder.finish([(shard.file_name, shard.specs) for shard in self.plan.shards], config)
        return report

    def _run_layer(self, shard: ShardPlan, started: float) -> LayerRecord:
        layer, work = shard.layer, self.folder.work
        assert layer is not None
        writer = ShardWriter(work / f"{shard.file_name}.partial", shard.specs)
        try:
            if self.corpus is None:
                record, total = quantize_layer_rtn(self.bench, shard, writer), None
            else:
                hidden = self._hidden(layer, self.corpus)
                lengths = [len(sequence) for sequence in self.corpus.sequences]
                record, total = quantize_layer_gptq(self.bench, shard, writer, lengths, hidden, work)
            writer.finish()
        finally:
            writer.close()
        publish(writer.path, self.folder.folder / shard.file_name)
        if total is not None and layer + 1 < self.network.num_layers:
            self._store_hidden(layer + 1, total)
        timing = {"seconds": round(time.monotonic() - started, 3), "peak_memory_bytes": peak_memory_bytes()}
        write_file(self._record_path(layer), dump_json({"record": record.to_dict(), "timing": timing}), work)
        self._commit(shard)
        discard(work / f"hidden-{layer:05d}.bin")
        discard(work / "total.partial")
        discard(work / "inputs.partial")
        return record

    def _write_rest(self, shard: ShardPlan) -> None:
        writer = ShardWriter(self.folder.work / f"{shard.file_name}.partial", shard.specs)
        try:
            copy_tensors(self.bench, shard, writer)
            writer.finish()
        finally:
            writer.close()
        publish(writer.path, self.folder.folder / shard.file_name)
        self._commit(shard)
        self.progress.step("embedding, head")

    def _commit(self, shard: ShardPlan) -> None:
        path = self.folder.folder / shard.file_name
        committed = CommittedShard(
            name=shard.file_name, sha256=file_sha256(path), num_bytes=path.stat().st_size
        )
        self.journal.commit(committed)

    def _hidden(self, layer: int, corpus: Corpus) -> ActivationStore:
        """Return the layer's input [tokens, hidden]: the embedding, or what the layer before left."""
        shape = (corpus.num_tokens, int(self.network.config.hidden_size))
        path = self.folder.work / f"hidden-{layer:05d}.bin"
        if layer > 0:
            if not path.is_file():
                raise ResumeError(f"{path} is missing; begin again in an empty folder")
            return ActivationStore(path, shape, self.network.compute_dtype, create=False)
        store = ActivationStore(path, shape, self.network.compute_dtype, create=True)
        embedding = self.checkpoint.load("model.embed_tokens.weight").to(self.network.compute_dtype)
        start = 0
        for sequence in corpus.sequences:
            store.tensor[start : start + len(sequence)] = embedding[torch.tensor(sequence)]
            start += len(sequence)
        return store

    def _store_hidden(self, layer: int, total: torch.Tensor) -> None:
        path = self.folder.work / f"hidden-{layer:05d}.bin"
        temporary = path.with_suffix(".partial")
        shape = (total.shape[0], total.shape[1])
        store = ActivationStore(temporary, shape, self.network.compute_dtype, create=True)
        store.tensor.copy_(total)
        store.sync()
        publish(temporary, path)

    def _record_path(self, layer: int) -> Path:
        return self.folder.work / f"layer-{layer:05d}.json"

    def _report(self, begin: dict[str, Any], side_files: list[str]) -> dict[str, Any]:
        """Return the report; everything but `timing` is the same for the same recipe, source and versions."""
        saved = [read_json_object(self._record_path(layer)) for layer in range(self.network.num_layers)]
        records = [LayerRecord.from_dict(item["record"]) for item in saved]
        seconds = [item["timing"]["seconds"] for item in saved]
        release_bytes = sum(shard.num_bytes for shard in self.journal.shards)
        source_bytes = sum(shard.num_bytes for shard in self.checkpoint.shards.values())
        corpus = self.corpus
        return {
            "versions": software_versions(),
            "recipe": self.recipe.to_dict(),
            "fingerprint": begin,
            "source": {"model_type": self.checkpoint.config.get("model_type"), "num_bytes": source_bytes},
            "calibration": None
            if corpus is None
            else {
                "data": corpus.description,
                "num_sequences": len(corpus.sequences),
                "num_tokens": corpus.num_tokens,
            },
            "release": {
                "num_bytes": release_bytes,
                "shards": {
                    shard.name: {"num_bytes": shard.num_bytes, "sha256": shard.sha256}
                    for shard in self.journal.shards
                },
                "side_files": side_files,
            },
            "summary": summarize(records),
            "layers": [record.to_dict() for record in records],
            "timing": {
                "seconds": round(sum(seconds), 3),
                "layer_seconds": seconds,
                "peak_memory_bytes": max(item["timing"]["peak_memory_bytes"] for item in saved),
            },
        }


def discard(path: Path) -> None:
    """Remove a work file that is no longer needed."""
    path.unlink(missing_ok=True)


def _check_folders(source: Path, out: Path) -> None:
    inside = source.resolve()
    if inside == out.resolve() or inside in out.resolve().parents:
        raise OutputError(f"{out} lies in the source folder {source}; choose a folder outside it")


def _check_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise RecipeError(f"device {name} cannot be used: {reason}") from None
    return device


def _fingerprint(checkpoint: Checkpoint, recipe: Recipe, corpus: Corpus | None) -> dict[str, Any]:
    return {
        "moe4": software_versions()["moe4"],
        "source": checkpoint.digest(),
        "recipe": recipe.digest(),
        "calibration": corpus.digest() if corpus else None,
    }


def _already_finished(folder: ReleaseFolder, begin: dict[str, Any]) -> dict[str, Any]:
    report = read_json_object(folder.folder / REPORT_NAME)
    if report.get("fingerprint") != begin:
        raise ResumeError(
            f"{folder.folder} holds a finished release of another recipe, source, calibration or version; "
            "choose an empty folder"
        )
    folder.remove_work_folder()
    return report


def _needed_bytes(
    plan: Plan, network: Network, checkpoint: Checkpoint, corpus: Corpus | None, folder: ReleaseFolder
) -> int:
    """Return the room a run still needs: the shards not yet there, side files, activations."""
    needed = sum(path.stat().st_size for path in checkpoint.side_files()) + (16 << 20)
    for shard in plan.shards:
        path = folder.folder / shard.file_name
        needed += 0 if path.is_file() else shard.num_bytes
    if corpus is not None:
        # A layer's input, its output, the experts' inputs, and the float32 sum.
        per_value = 3 * network.compute_dtype.itemsize + 4
        needed += corpus.num_tokens * int(network.config.hidden_size) * per_value
    return needed


def describe(report: dict[str, Any]) -> str:
    """Return a release's summary in a few lines."""
    summary, release = report["summary"], report["release"]
    before, after = report["source"]["num_bytes"], release["num_bytes"]
    lines = [
        f"size      {format_bytes(before)} -> {format_bytes(after)} ({after / before:.1%})",
        f"error     {summary['mean_error']:.5f} mean over {summary['num_matrices']} matrices, "
        f"weighted by the Hessian (round to nearest {summary['mean_rtn_error']:.5f})",
        f"fallbacks {len(summary['fallbacks'])}",
    ]
    if "expert_tokens" in summary:
        tokens = summary["expert_tokens"]
        lines.append(
            f"tokens    {tokens['least']} to {tokens['most']} an expert, median {tokens['median']}, "
            f"{tokens['num_unreached']} experts unreached"
        )
    timing = report["timing"]
    lines.append(
        f"time      {timing['seconds']:.1f} s, at most {format_bytes(timing['peak_memory_bytes'])} of memory"
    )
    return "\n".join(lines)
