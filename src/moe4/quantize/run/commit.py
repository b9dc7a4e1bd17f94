"""Shard after shard from a source checkpoint to a release, each committed before the next.

A layer is committed in this order: its shard and the input of the next layer, its record, its line in the
journal, which is written when the others are durable. A run that is killed anywhere continues after the last
line, and what it writes is byte for byte what it would have written. Rank 0 does all of this; the others help
with the layers.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from moe4.calibration.activations import Activations
from moe4.checkpoint.journal import CommittedShard, Journal
from moe4.checkpoint.reads import ReadLog
from moe4.checkpoint.release_folder import ReleaseFolder, dump_json, make_index
from moe4.checkpoint.report_file import LayerRecord, ReportedProbe
from moe4.checkpoint.shard import ShardWriter
from moe4.checkpoint.source import CONFIG_NAME, INDEX_NAME
from moe4.files.durable import file_sha256, publish, write_file
from moe4.probe.form import PROBE_NAME, Reach, encode_probe
from moe4.probe.make import assemble, report_entry
from moe4.probe.passes import count_pairs
from moe4.quantize.layer.running_probe import ProbePrompts, RunningProbe
from moe4.quantize.layer.workbench import Workbench, copy_tensors
from moe4.quantize.planning.release_plan import ReleasePlan, ShardPlan, quantization_config
from moe4.quantize.reporting.layer_record import peak_memory_bytes
from moe4.quantize.reporting.progress import ProgressReporter
from moe4.quantize.reporting.saved import (
    SAVED_LAYER,
    SAVED_REST,
    LayerTiming,
    RankUsage,
    RestTiming,
    SavedLayer,
    SavedProbe,
    SavedRest,
    SavedRun,
)
from moe4.quantize.run.commit_queue import Commit, CommitQueue, commits_behind
from moe4.quantize.run.expected_time import expected_times
from moe4.quantize.run.layer import quantize_layer_alone, quantize_layer_gptq, work_paths
from moe4.quantize.transfer.boundary import Boundary
from moe4.quantize.transfer.device_memory import use_device
from moe4.quantize.transfer.ranks import Parcel
from moe4.quantize.transfer.traffic import TrafficMeter, total_traffic, written_traffic
from moe4.schema import given
from moe4.strict_json import JsonObject

REST_RECORD = "rest.json"

NextInputs = list[tuple[str, Callable[[], str]]]  # names of files; what makes each durable, gives its SHA-256


@dataclass(kw_only=True, slots=True)
class _DoneLayer:
    """A layer that has been run, on its way into the release."""

    shard: ShardPlan
    writer: ShardWriter
    record: LayerRecord
    probe: SavedProbe | None
    inputs: NextInputs
    source: dict[str, str]
    """SHA-256 of what was read of the source."""
    usages: list[RankUsage]
    started: float
    seconds: float
    kept: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files that the rest of the run needs."""

    def to_saved(self) -> SavedLayer:
        """Return what is kept of it; its shard is finished."""
        traffic = [*(usage.traffic for usage in self.usages), written_traffic(self.writer)]
        timing = LayerTiming(
            seconds=round(self.seconds, 3),
            num_ranks=len(self.usages),
            peak_memory_bytes=max(usage.peak_memory_bytes for usage in self.usages),
            traffic=total_traffic(traffic),
        )
        return SavedLayer(record=self.record, **given(probe=self.probe), source=self.source, timing=timing)


class Committer:
    """Rank 0's part of a run."""

    def __init__(
        self,
        bench: Workbench,
        folder: ReleaseFolder,
        journal: Journal,
        plan: ReleasePlan,
        boundary: Boundary | None,
        progress: ProgressReporter,
    ) -> None:
        self.bench, self.folder, self.journal = bench, folder, journal
        self.plan, self.boundary, self.progress = plan, boundary, progress
        self.num_layers = bench.network.num_layers
        self.meter = TrafficMeter(bench.checkpoint)

    def commit_shards(self) -> None:
        """Commit every shard that is not committed yet."""
        num_done = len(self.journal.shards)
        if num_done:
            self.progress.say(f"continuing after {num_done} of {len(self.plan.shards)} shards")
        num_tokens = self.boundary.num_tokens if self.boundary is not None else 0
        self.progress.begin(expected_times(self.plan, self.bench, num_tokens), self.num_layers, num_done)
        with CommitQueue(self.bench.device) as queue:
            for shard in self.plan.shards[num_done:]:
                if shard.layer is None:
                    queue.wait()
                    self._write_rest(shard)
                else:
                    commit = self._run_layer(shard)
                    queue.put(commit, may_wait=self._need_not_wait(shard.layer + 1))
                self.bench.checkpoint.provider.step_done()

    def _need_not_wait(self, layer: int) -> bool:
        """Say whether a layer can be run before the one before it is committed."""
        return self.boundary is None or layer == self.num_layers or self.boundary.is_resident(layer)

    def read_saved(self) -> SavedRun:
        """Return what the shards left that are committed so far."""
        paths = [self._record_path(layer) for layer in range(self.num_layers)]
        return SavedRun(
            layers=[SAVED_LAYER.read(path) for path in paths if path.is_file()],
            rest=SAVED_REST.read(self._rest_path) if self._rest_path.is_file() else None,
        )

    def write_probe(self, prompts: ProbePrompts, layers: list[SavedLayer]) -> ReportedProbe:
        """Write the expected answers into the release; return what the report says of them."""
        if self.bench.probe is None:
            return ReportedProbe(missing=prompts.reason)
        found = [layer.probe for layer in layers if layer.probe is not None]
        expected = found[-1].expected
        assert expected is not None  # of the last layer
        reach = Reach(
            num_pairs=count_pairs(self.bench.network),
            num_unreached=sum(layer.num_unreached for layer in found),
        )
        model_type = str(self.bench.checkpoint.config.model_type)
        answers = assemble(model_type, prompts.chosen, prompts.remarks, expected, reach)
        data = encode_probe(answers)
        write_file(self.folder.folder / PROBE_NAME, data, self.folder.work)
        return report_entry(answers)

    def last_files(self) -> dict[str, bytes]:
        """Return what is written last, by name, in that order: the index, then the config."""
        config = without_quantization(self.bench.checkpoint.config.document)
        config["quantization_config"] = quantization_config(self.plan)
        index = make_index([(shard.file_name, shard.specs) for shard in self.plan.shards])
        return {INDEX_NAME: dump_json(index), CONFIG_NAME: dump_json(config)}

    def _run_layer(self, shard: ShardPlan) -> Commit:
        """Quantize a layer; return what commits it, which may run behind the next layers' back."""
        started, layer, work = time.monotonic(), shard.layer_number, self.folder.work
        writer_path = work / f"{shard.file_name}.partial"
        writer = ShardWriter(writer_path, shard.specs, behind=commits_behind(self.bench.device))
        try:
            if self.boundary is not None and layer == 0:
                self.boundary.embed()
            record, total = run_layer(self.bench, shard, writer, self.boundary, work)
            inputs: NextInputs = []
            if total is not None and self.boundary is not None and layer + 1 < self.num_layers:
                inputs.append((self.boundary.path(layer + 1).name, self.boundary.advance(layer + 1, total)))
            probe = None
            if self.bench.probe is not None:
                probe = self._finish_probe_layer(self.bench.probe, layer, inputs)
            ranks = self.bench.ranks
            usages = [RankUsage(**usage.facts) for _, usage in ranks.spread(ranks.size, self._usage)]
            source = self._merge_reads([usage.source for usage in usages])
        except BaseException:
            writer.close()
            raise
        done = _DoneLayer(
            shard=shard,
            writer=writer,
            record=record,
            probe=probe,
            inputs=inputs,
            source=source,
            usages=usages,
            started=started,
            seconds=time.monotonic() - started,
        )
        return Commit(make_durable=lambda: self._make_durable(done), seal=lambda: self._seal(done))

    def _finish_probe_layer(self, probe: RunningProbe, layer: int, inputs: NextInputs) -> SavedProbe:
        """End the probe's passes through a layer; return what the layer's record says of them."""
        is_last = layer + 1 == self.num_layers
        found = probe.finish_layer(is_last=is_last)
        if not is_last:
            persist = probe.persist(layer + 1, behind=commits_behind(self.bench.device))
            inputs.append((probe.path(layer + 1).name, persist))
        return found

    def _make_durable(self, done: "_DoneLayer") -> None:
        """Make a layer's shard and the next layer's inputs durable, and keep the SHA-256 of the inputs."""
        device, inputs = self.bench.device, done.inputs
        with ThreadPoolExecutor(
            max_workers=max(1, len(inputs)), initializer=use_device, initargs=(device,)
        ) as threads:
            behind = [threads.submit(persist) for _, persist in inputs if commits_behind(device)]
            try:
                done.writer.finish()
            finally:
                done.writer.close()
            for place, (name, persist) in enumerate(inputs):
                done.kept[name] = behind[place].result() if behind else persist()
        if not commits_behind(device):
            done.seconds = time.monotonic() - done.started

    def _seal(self, done: "_DoneLayer") -> None:
        """Give a durable layer's shard its name, write its record, and its line into the journal."""
        layer, work = done.shard.layer_number, self.folder.work
        publish(done.writer.path, self.folder.folder / done.shard.file_name)
        path, saved = self._record_path(layer), done.to_saved()
        write_file(path, dump_json(saved.as_dict()), work)
        done.kept[path.name] = file_sha256(path)
        self._commit(done.shard, done.writer, done.kept)
        for item in (self.boundary, self.bench.probe):
            if item is not None and layer > 0:
                discard(item.path(layer - 1))
        for leftover in work_paths(work, layer):
            discard(leftover)
        self.progress.layer_committed(done.record, self.num_layers, saved.timing.seconds)

    def _write_rest(self, shard: ShardPlan) -> None:
        path = self.folder.work / f"{shard.file_name}.partial"
        writer = ShardWriter(path, shard.specs, behind=commits_behind(self.bench.device))
        try:
            copy_tensors(self.bench, shard, writer)
            writer.finish()
        finally:
            writer.close()
        publish(writer.path, self.folder.folder / shard.file_name)
        traffic = total_traffic([self.meter.take(), written_traffic(writer)])
        saved = SavedRest(timing=RestTiming(traffic=traffic), source=self.bench.reads.take())
        write_file(self._rest_path, dump_json(saved.as_dict()), self.folder.work)
        self._commit(shard, writer, {self._rest_path.name: file_sha256(self._rest_path)})
        self.progress.rest_done()

    def _commit(self, shard: ShardPlan, writer: ShardWriter, kept: dict[str, str]) -> None:
        self.journal.commit(
            CommittedShard(name=shard.file_name, sha256=writer.sha256, num_bytes=writer.num_bytes, kept=kept)
        )

    def _usage(self, _: int) -> Parcel:
        return _usage(self.meter, self.bench.reads)

    def _merge_reads(self, found: list[dict[str, str]]) -> dict[str, str]:
        """Join what the ranks have read. Raises CheckpointError where two of them read other bytes."""
        for reads in found:
            self.bench.reads.expect(reads)
        return {name: sha256 for reads in found for name, sha256 in sorted(reads.items())}

    @property
    def _rest_path(self) -> Path:
        return self.folder.work / REST_RECORD

    def _record_path(self, layer: int) -> Path:
        return self.folder.work / f"layer-{layer:05d}.json"


def follow_layers(
    bench: Workbench, plan: ReleasePlan, num_done: int, boundary: Boundary | None, work: Path
) -> None:
    """Do the part of a rank other than 0 in every layer that is not committed yet."""
    meter = TrafficMeter(bench.checkpoint)
    for shard in plan.shards[num_done:]:
        if shard.layer is not None:
            run_layer(bench, shard, None, boundary, work)
            for _ in bench.ranks.spread(bench.ranks.size, lambda _: _usage(meter, bench.reads)):
                pass


def run_layer(
    bench: Workbench, shard: ShardPlan, writer: ShardWriter | None, boundary: Boundary | None, work: Path
) -> tuple[LayerRecord, Activations | None]:
    """Quantize one layer, on every rank; the result is whole on rank 0, which has the writer."""
    if boundary is None:
        return quantize_layer_alone(bench, shard, writer), None
    hidden = boundary.open(shard.layer_number, bench.ranks)
    return quantize_layer_gptq(bench, shard, writer, boundary.sequences, hidden, work)


def without_quantization(config: JsonObject) -> JsonObject:
    """Return a source's config without what it says of its own quantization, also of its text model's."""
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    if isinstance(kept.get("text_config"), dict):
        kept["text_config"] = without_quantization(kept["text_config"])
    return kept


def discard(path: Path) -> None:
    """Remove a work file that is no longer needed."""
    path.unlink(missing_ok=True)


def _usage(meter: TrafficMeter, reads: ReadLog) -> Parcel:
    usage = RankUsage(peak_memory_bytes=peak_memory_bytes(), traffic=meter.take(), source=reads.take())
    return Parcel(facts=usage.as_dict())
