"""`moe4 tune`: learn a release's scales from its source's answers, and write the release they belong to."""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from moe4.arguments import argument
from moe4.calibration.corpus import Corpus, load_corpus
from moe4.checkpoint.index import CONFIG_NAME, INDEX_NAME, PROBE_NAME
from moe4.checkpoint.journal import Begin, Journal
from moe4.checkpoint.release_folder import REPORT_NAME, ReleaseFolder, State, dump_json
from moe4.checkpoint.report_file import Report, Tuning, read_report
from moe4.checkpoint.source import Checkpoint
from moe4.errors import EvaluationError, MemoryBudgetError, ResumeError
from moe4.evaluate.comparison.compare import require_alike
from moe4.files.regular import read_bytes
from moe4.forward.device import usable_device
from moe4.forward.stream import Stream
from moe4.forward.trial import try_family
from moe4.forward.weights import open_model
from moe4.machine.memory import available_memory_bytes
from moe4.model.architecture import Network
from moe4.probe.make import ProbeOptions, make_probe
from moe4.progress import OnProgress, Pace, ignore
from moe4.quantize.planning.request import check_folders
from moe4.quantize.reporting.layer_record import software_versions
from moe4.quantize.run.environment import find_environment
from moe4.recipe import Calibration
from moe4.strict_json import JsonObject
from moe4.tune.release import copy_with_scales
from moe4.tune.saved import SavedState
from moe4.tune.scales import TunedScales, learning_rate
from moe4.tune.student import LogProbabilities, Student, Text
from moe4.units import format_bytes

HELD_BACK = 10  # one document of so many is not trained on
SAVE_SECONDS = 30.0
PADDED_BYTES = 1 << 30  # of several experts' tokens at once, on a GPU

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneOptions:
    """The options of `moe4 tune`.

    learning_rate: of Adam, for a scale's relative change, at its peak. batch_tokens: of a step, at least.
    """

    source: Path
    release: Path
    out: Path
    calibration: Path | None = None
    num_sequences: int = 768
    max_sequence_tokens: int = 1024
    seed: int = 0
    epochs: int = 4
    learning_rate: float = 1e-3
    batch_tokens: int = 8192
    device: str = "cpu"
    resume: bool = False
    work: Path | None = None
    family_as_is: bool = False
    trust_remote_code: bool = False

    def decides(self) -> JsonObject:
        """Return what decides the release's bytes, beside the two models and the text."""
        return {
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "batch_tokens": self.batch_tokens,
            "seed": self.seed,
        }


class _Model(NamedTuple):
    weights: Checkpoint
    network: Network


def tune(options: TuneOptions, say: Say, on_progress: OnProgress = ignore) -> Report:
    """Write the tuned release into `options.out`; return its report.

    Raises CheckpointError, CalibrationError, EvaluationError where tuning did not help, MemoryBudgetError,
    OutputError or ResumeError.
    """
    source, release, corpus, report = _open(options)
    say(corpus.recognized)
    device = usable_device(options.device)
    folder = ReleaseFolder(options.out, resume=options.resume)
    begin = _begin(options, source.weights, release.weights, corpus, device)
    if folder.state is State.FINISHED:
        return _go_on_finished(options, begin, say, on_progress)
    folder.require_space(release.weights.num_bytes)
    journal = folder.open()
    try:
        _start(journal, begin)
        torch.set_num_threads(begin.num_threads)
        with tempfile.TemporaryDirectory(prefix="moe4-tune-", dir=options.work) as work:
            run = _Run(options, source, release, corpus, SavedState(folder.work), Path(work), device)
            tuning = run.train(begin, say, on_progress)
        say(
            f"KL to the source on text held back {tuning.kl_before:.3e} -> {tuning.kl_after:.3e} nats a token"
        )
        if not tuning.kl_after < tuning.kl_before:
            folder.discard()
            raise EvaluationError(
                "tuning did not help on the text held back; nothing was written. Use the release as it is, "
                f"or try more text or a smaller {argument('learning_rate')}"
            )
        shards = copy_with_scales(release.weights, run.scales, folder, report)
        _finish(folder, options.release, report, shards, tuning)
    finally:
        folder.close()
    return _expect_answers(options, say, on_progress)


def _open(
    options: TuneOptions,
) -> tuple[_Model, _Model, Corpus, Report]:
    check_folders(options.source, options.out)
    check_folders(options.release, options.out)
    source, release = (
        _Model(*open_model(folder, torch.float32, family_as_is=options.family_as_is))
        for folder in (options.source, options.release)
    )
    try_family(source.weights.config)
    require_alike(options.source, options.release, source.network, release.network)
    settings = Calibration(
        num_sequences=options.num_sequences,
        max_sequence_tokens=options.max_sequence_tokens,
        seed=options.seed,
    )
    corpus = load_corpus(
        options.source,
        source.network.config,
        settings,
        options.calibration,
        trust_remote_code=options.trust_remote_code,
    )
    if len(corpus.sequences) < 2 * HELD_BACK:
        raise EvaluationError(
            f"{corpus.description}: tuning needs at least {2 * HELD_BACK} documents, "
            f"found {len(corpus.sequences)}"
        )
    return source, release, corpus, read_report(options.release)


def _begin(
    options: TuneOptions, source: Checkpoint, release: Checkpoint, corpus: Corpus, device: torch.device
) -> Begin:
    """Return what this run begins with, which is what one that goes on must have begun with."""
    values: JsonObject = {**options.decides(), "release": release.digest()}
    return Begin(
        moe4=software_versions()["moe4"],
        source=source.digest(),
        recipe=hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest(),
        documents=None,
        calibration=corpus.digest(),
        probe=None,
        side_files={},
        environment=find_environment(device).with_threads(torch.get_num_threads()),
        recipe_values=values,
        versions={},
        source_files={},
    )


def _start(journal: Journal, begin: Begin) -> None:
    if journal.begin is None:
        journal.start(begin)
    else:
        journal.match(begin)


class _Run:
    """One run: both models, the text, and where the hidden states and the state of training are."""

    def __init__(
        self,
        options: TuneOptions,
        source: _Model,
        release: _Model,
        corpus: Corpus,
        saved: SavedState,
        work: Path,
        device: torch.device,
    ) -> None:
        self._options, self._saved, self._device = options, saved, device
        self._corpus, self._work = corpus, work
        self._source, network = source, release.network
        self.scales = TunedScales(release.weights, network, device)
        chosen = range(len(corpus.sequences))
        self._held_back = [number for number in chosen if number % HELD_BACK == HELD_BACK - 1]
        self._trained_on = [number for number in chosen if number % HELD_BACK != HELD_BACK - 1]
        self._steps = [step for epoch in range(options.epochs) for step in self._epoch(epoch)]
        self._checks = _groups(corpus, self._held_back, options.batch_tokens)
        self._starts = torch.tensor([0, *map(len, corpus.sequences)], dtype=torch.int64).cumsum(0)
        padded_bytes = PADDED_BYTES if device.type == "cuda" else 0
        self._student = Student(*release, self.scales, device, self._room(network), padded_bytes)

    def train(self, begin: Begin, say: Say, on_progress: OnProgress) -> Tuning:
        """Learn the scales, from where an earlier run was cut off."""
        began = time.monotonic()
        answers = self._source_answers(say, on_progress)
        done, before = 0, 0.0
        saved = self._saved.load()
        if saved is None:
            before = self._measure(answers, "measuring the release", on_progress)
        else:
            done, before = saved.done, saved.kl_before
            self.scales.restore(saved.tensors)
            say(f"going on after step {done} of {len(self._steps)}")
        self._train_from(done, before, answers, say, on_progress)
        after = self._measure(answers, "measuring the tuned release", on_progress)
        sequences = self._corpus.sequences
        return Tuning(
            data=self._corpus.description,
            num_sequences=len(self._trained_on),
            num_tokens=sum(len(sequences[number]) for number in self._trained_on),
            num_held_back=len(self._held_back),
            max_sequence_tokens=self._options.max_sequence_tokens,
            num_scales=self.scales.num_scales,
            num_steps=len(self._steps),
            **self._options.decides(),
            kl_before=before,
            kl_after=after,
            recipe=begin.recipe,
            seconds=time.monotonic() - began,
        )

    def _train_from(
        self, done: int, before: float, answers: LogProbabilities, say: Say, on_progress: OnProgress
    ) -> None:
        network, total, saved_at = self._student.network, len(self._steps), time.monotonic()
        pace, first = _LayerPace(on_progress, "tuning", (total - done) * 2 * network.num_layers), done
        per_report = max(1, total // self._options.epochs)
        summed = num_tokens = 0.0
        for number in range(done, total):
            rate = learning_rate(self._options.learning_rate, number, total)

            def step(layer: int, number: int = number, rate: float = rate) -> None:
                self.scales.step(layer, number + 1, rate)
                pace.one()

            text, source = self._text(self._steps[number], answers)
            states = self._student.forward(text, pace.one)
            loss, gradient = self._student.divergence(states[-1], source, with_gradient=True)
            self._student.backward(text, states, gradient, step)
            pace.at((number + 1 - first) * 2 * network.num_layers)
            summed, num_tokens = summed + loss, num_tokens + len(text.tokens)
            if (number + 1) % per_report == 0:
                say(f"step {number + 1} of {total}: KL {summed / num_tokens:.3e} nats a token of its text")
                summed = num_tokens = 0.0
            if time.monotonic() - saved_at > SAVE_SECONDS:
                self._saved.save(number + 1, before, self.scales.state())
                saved_at = time.monotonic()
        self._saved.save(total, before, self.scales.state())

    def _measure(self, answers: LogProbabilities, stage: str, on_progress: OnProgress) -> float:
        """Return the mean KL of the text held back, in nats a token."""
        pace = _LayerPace(on_progress, stage, len(self._checks) * self._student.network.num_layers)
        total, num_tokens = 0.0, 0
        for group in self._checks:
            text, source = self._text(group, answers)
            last = self._student.forward(text, pace.one)[-1]
            total += self._student.divergence(last, source, with_gradient=False)[0]
            num_tokens += len(text.tokens)
        return total / num_tokens

    def _source_answers(self, say: Say, on_progress: OnProgress) -> LogProbabilities:
        """Run the source over all of the text; return its log-probabilities by row of the corpus."""
        weights, network = self._source
        stream = Stream(
            weights, network, self._corpus.sequences, self._place_of_states(network), self._device
        )
        pace = Pace(on_progress, "running the source")
        stream.embed()
        for layer in range(network.num_layers):
            pace.layer(layer, network.num_layers)
            stream.run_layer(layer)
        return stream.head()

    def _place_of_states(self, network: Network) -> Path | None:
        """Return the folder for the source's hidden states, or None if the device has room for them."""
        needed = 4 * 4 * int(self._starts[-1]) * network.state_width
        return None if self._device.type == "cuda" and 4 * needed < self._free_bytes() else self._work

    def _text(self, numbers: Sequence[int], answers: LogProbabilities) -> tuple[Text, LogProbabilities]:
        """Return some sequences, and the source's log-probabilities by row of theirs."""
        text = Text([self._corpus.sequences[number] for number in numbers])
        pieces = [torch.arange(int(self._starts[n]), int(self._starts[n + 1])) for n in numbers]
        rows_of_corpus = torch.cat(pieces)

        def source(rows: Tensor) -> Tensor:
            return answers(rows_of_corpus[rows.cpu()])

        return text, source

    def _epoch(self, epoch: int) -> list[list[int]]:
        """Return the steps of an epoch: the numbers of their sequences, in an order of its own."""
        generator = torch.Generator().manual_seed(self._options.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._trained_on), generator=generator).tolist()
        return _groups(self._corpus, [self._trained_on[place] for place in order], self._options.batch_tokens)

    def _room(self, network: Network) -> int:
        """Return the bytes that decoded weights may keep. Raises MemoryBudgetError if a step does not fit."""
        free = self._free_bytes()
        longest = max(map(len, self._corpus.sequences))
        tokens = self._options.batch_tokens + longest
        needed = 4 * tokens * network.state_width * (network.num_layers + 4)
        if 2 * needed > free:
            raise MemoryBudgetError(
                f"a step of {tokens:,} tokens needs {format_bytes(2 * needed)} for its hidden states, and "
                f"{format_bytes(free)} are free; give a smaller {argument('batch_tokens')}"
            )
        return max(0, free // 2 - needed)

    def _free_bytes(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.mem_get_info(self._device)[0])
        return available_memory_bytes()


class _LayerPace:
    """Progress in layers of both directions."""

    def __init__(self, on_progress: OnProgress, stage: str, total: int) -> None:
        self._pace, self._total, self._done = Pace(on_progress, stage), total, 0

    def one(self) -> None:
        """One more is done."""
        self.at(self._done + 1)

    def at(self, done: int) -> None:
        """So many are done."""
        self._done = done
        self._pace.count(done, self._total)


def _groups(corpus: Corpus, numbers: Sequence[int], num_tokens: int) -> list[list[int]]:
    """Put sequences, in their order, into groups of at least so many tokens; the last may have fewer."""
    groups, current, size = list[list[int]](), list[int](), 0
    for number in numbers:
        current.append(number)
        size += len(corpus.sequences[number])
        if size >= num_tokens:
            groups.append(current)
            current, size = [], 0
    return [*groups, current] if current else groups


def _finish(folder: ReleaseFolder, release: Path, report: Report, shards: JsonObject, tuning: Tuning) -> None:
    """Write what the release has beside its shards; its expected answers are made once it is whole."""
    listing = dict(report.release.files or {})
    listing.pop(PROBE_NAME, None)
    sides = [name for name in listing if name not in (CONFIG_NAME, INDEX_NAME)]
    folder.copy_side_files([release / name for name in sides], {name: listing[name].sha256 for name in sides})
    changed = report.model_copy(
        update={
            "tuning": tuning,
            "probe": None,
            "release": report.release.model_copy(update={"shards": shards, "files": listing}),
        }
    )
    last = {name: read_bytes(release / name) for name in (INDEX_NAME, CONFIG_NAME)}
    folder.finish({REPORT_NAME: dump_json(changed.as_dict()), **last})


def _expect_answers(options: TuneOptions, say: Say, on_progress: OnProgress) -> Report:
    """Give the tuned release its expected answers; return its report."""
    made = ProbeOptions(
        release=options.out,
        source=options.source,
        force=True,
        device=options.device,
        family_as_is=options.family_as_is,
        trust_remote_code=options.trust_remote_code,
    )
    make_probe(made, say, on_progress)
    return read_report(options.out)


def _go_on_finished(options: TuneOptions, begin: Begin, say: Say, on_progress: OnProgress) -> Report:
    """Return the report of a release that is finished and would become the same. Raises ResumeError."""
    report = read_report(options.out)
    if report.tuning is None or report.tuning.recipe != begin.recipe:
        raise ResumeError(f"{options.out} holds another finished release; choose an empty folder")
    if report.probe is None:
        return _expect_answers(options, say, on_progress)
    return report
