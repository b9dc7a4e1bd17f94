"""`moe4 power`: plant faults in a release, one at a time, and find out which of its measures notice them."""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from moe4.checkpoint.index import PROBE_NAME
from moe4.checkpoint.report_file import PROOF_FOLDER
from moe4.errors import EvaluationError
from moe4.escape import visible
from moe4.evaluate.comparison.compare import CompareOptions, check_comparison, load_text
from moe4.evaluate.harness.evaluation import write_json
from moe4.evaluate.record import record_run
from moe4.evaluate.result_files import POWER, MeasureName, PlantedFault, PowerFile
from moe4.files.durable import check_output, make_folder
from moe4.files.regular import read_bytes
from moe4.forward.device import usable_device
from moe4.forward.trial import try_family
from moe4.forward.weights import open_model
from moe4.power.faults import FaultKind, list_faults
from moe4.power.measures import Limits, as_expected, ask, find_limits
from moe4.power.passes import RIGHT, Found, Models, Trials
from moe4.power.search import Ladder
from moe4.probe.form import ExpectedAnswers, read_probe
from moe4.progress import OnProgress, Pace, ignore
from moe4.publish.words import MEASURES, figures, noticed_words
from moe4.reference import is_asked_for
from moe4.schema import given
from moe4.verify.checks import is_copy

NUM_SEQUENCES = 20
PASSED: tuple[MeasureName, ...] = ("probe", "kl", "top1")  # these need a pass of the faulty release
WEIGHED: tuple[MeasureName, ...] = ("verify", "experts")
TEMPLATE = "chat_template.jinja"
NO_PROBE = f"the release has no {PROBE_NAME}: moe4 probe RELEASE makes it"
NO_BF16 = f"{PROBE_NAME} has no answers in bfloat16: moe4 probe RELEASE --force makes it again"
FALSE_ALARM = "its bounds are exceeded by the release as it is, so it cannot tell a fault from rounding"
NO_TEMPLATE = f"the source has no {TEMPLATE}"
NO_ROUTER_BIAS = "this model's router has no bias"

Say = Callable[[str], None]


def output_path(release: Path) -> Path:
    """Return where the result goes."""
    return release / PROOF_FOLDER / POWER


def command_words(options: CompareOptions) -> list[str]:
    """Return the words of the command that measures the same, of the folders SOURCE and OUT."""
    words = ["moe4", "power", "SOURCE", "OUT"]
    if options.data is not None:
        words += ["--data", str(options.data) if is_asked_for(options.data) else options.data.name]
    if options.num_sequences != NUM_SEQUENCES:
        words += ["--num-sequences", str(options.num_sequences)]
    return words


def measure_power(options: CompareOptions, say: Say, on_progress: OnProgress = ignore) -> PowerFile:
    """Plant faults and measure; write RELEASE/proof/power.json and return what it holds.

    The faults are planted in what is read, in memory: no file of the release changes. Raises CheckpointError,
    CalibrationError, EvaluationError, ProbeError or OutputError.
    """
    check_comparison(options)
    models, group_size = _open(options)
    path = output_path(options.release)
    check_output(path if os.path.lexists(path.parent) else path.parent)
    answers, left_out = _read_answers(options)
    corpus = load_text(options, models.source_network.config)
    say(corpus.recognized)
    asked = [] if answers is None else [sequence.tokens for sequence in answers.sequences]
    device = usable_device(options.device)
    with tempfile.TemporaryDirectory(prefix="moe4-power-", dir=options.work) as folder:
        trials = Trials(models, corpus, asked, Path(folder), device)
        search = _Search(trials, models.network.num_layers, say, on_progress)
        right = search.run_right()
        limits, alarm = _limits(right, answers)
        left_out |= alarm
        planted = search.plant(list_faults(models.network, group_size, trials.expert_tokens), limits)
        planted += _plant_template(options, right[RIGHT], limits, Path(folder))
    names = {fault.name for fault in planted}
    left_out |= {} if "router_bias" in names else {"router's bias": NO_ROUTER_BIAS}
    left_out |= {} if "template" in names else {"chat template": NO_TEMPLATE}
    result = PowerFile(
        version=1,
        data=visible(corpus.description),
        num_sequences=len(corpus.sequences),
        num_tokens=len(right[RIGHT].tokens.kl),
        num_asked=len(asked),
        num_experts=len(trials.expert_tokens),
        faults_planted=planted,
        left_out=left_out,
        run=record_run(command_words(options)),
    )
    make_folder(path.parent)
    write_json(path, result.as_dict())
    return result


def _open(options: CompareOptions) -> tuple[Models, int]:
    """Return both models, and the codes of the release that share a scale."""
    as_is = options.family_as_is
    source, source_network = open_model(options.source, torch.bfloat16, family_as_is=as_is)
    release, network = open_model(options.release, torch.bfloat16, family_as_is=as_is)
    try_family(source.config)
    quantization = release.config.quantization
    group_size = quantization.w4a16_group_size if quantization else None
    if group_size is None:
        raise EvaluationError(f"{options.release} is not a W4A16 release; name the folder of one")
    models = Models(
        source=source,
        release=release,
        source_network=source_network,
        network=network,
        exact_network=network.in_dtype(torch.float32),
    )
    return models, group_size


def _read_answers(options: CompareOptions) -> tuple[ExpectedAnswers | None, dict[str, str]]:
    """Return the release's expected answers, or why they cannot be used."""
    path = options.release / PROBE_NAME
    if not path.exists():
        return None, {"expected answers": NO_PROBE}
    answers = read_probe(path)
    if any(sequence.bf16 is None for sequence in answers.sequences):
        return None, {"expected answers": NO_BF16}
    return answers, {}


def _limits(right: dict[str, Found], answers: ExpectedAnswers | None) -> tuple[Limits, dict[str, str]]:
    """Return the limits of right releases; without the probe if it calls one of them wrong."""
    expected = None if answers is None else as_expected(answers)
    asked = [found.answers for found in right.values() if found.answers is not None]
    if expected is not None and not all(ask(expected, answers)["ok"] for answers in asked):
        return find_limits(right.values(), None), {"expected answers": FALSE_ALARM}
    return find_limits(right.values(), expected), {}


class _Search:
    """Rounds of trials; each reads both models' weights once."""

    def __init__(self, trials: Trials, num_layers: int, say: Say, on_progress: OnProgress) -> None:
        self._trials, self._num_layers, self._say = trials, num_layers, say
        self._pace = Pace(on_progress, "planting faults")
        self._num_rounds, self._done = 8, 0

    def run_right(self) -> dict[str, Found]:
        """Return what the release as it is gives, computed in two ways."""
        self._say("running the release as it is, in bfloat16 and in float32")
        return self._trials.run_right(self._count)

    def plant(self, kinds: list[FaultKind], limits: Limits) -> list[PlantedFault]:
        """Return what the measures say of every fault at its usual size, and the smallest they notice."""
        ladders = {kind.name: Ladder(kind.sizes or (kind.usual,), kind.usual) for kind in kinds}
        self._num_rounds = 1 + max(Ladder.most_rounds(kind.sizes) for kind in kinds)
        while self._plant_sizes(kinds, ladders, limits):
            pass
        return [_describe_fault(kind, ladders[kind.name]) for kind in kinds]

    def _plant_sizes(self, kinds: list[FaultKind], ladders: dict[str, Ladder], limits: Limits) -> bool:
        """Try the sizes at which bisection needs a measure now; say whether there were any.

        Only those that a measure of PASSED needs are run through the model.
        """
        passed = [(kind, size) for kind in kinds for size in ladders[kind.name].next_sizes(PASSED)]
        weighed = [(kind, size) for kind in kinds for size in ladders[kind.name].next_sizes(WEIGHED)]
        damages = {f"{kind.name}-{size:g}": kind.make(size) for kind, size in passed}
        others = [(kind, size, kind.make(size)) for kind, size in weighed if (kind, size) not in passed]
        if not damages and not others:
            return False
        self._say(f"planting {len(damages) + len(others)} faults")
        found = self._trials.run(damages, [damage for _, _, damage in others], self._count)
        for (kind, size), name in zip(passed, damages, strict=True):
            ladders[kind.name].record(size, limits.apply(found[name]))
        for kind, size, damage in others:
            ladders[kind.name].record(size, limits.weigh(self._trials.weigh(damage)))
        return True

    def _count(self) -> None:
        self._done += 1
        self._pace.count(self._done, max(self._done, self._num_rounds * self._num_layers))


def _describe_fault(kind: FaultKind, ladder: Ladder) -> PlantedFault:
    measures = {
        name: found.model_copy(update={"smallest": ladder.smallest(name)}) if kind.sizes else found
        for name, found in ladder.usual.items()
    }
    sized = given(unit=kind.unit, size=kind.usual if kind.sizes else None)
    return PlantedFault(name=kind.name, title=kind.title, measures=measures, **sized)


def _plant_template(
    options: CompareOptions, right: Found, limits: Limits, folder: Path
) -> Iterator[PlantedFault]:
    """Yield what the measures say of a release with another chat template, if there is one.

    The expected answers and the text are tokens that the source's tokenizer made: neither sees it.
    """
    original = options.source / TEMPLATE
    if original.is_file():
        changed = folder / TEMPLATE
        changed.write_bytes(read_bytes(original) + b" ")
        measures = limits.apply(replace(right, num_changed=int(not is_copy(changed, original))))
        yield PlantedFault(name="template", title="another chat template", measures=measures)


def describe(result: PowerFile) -> str:
    """Return which measure noticed which fault, in a few lines."""
    lines = [
        f"planted one at a time in a copy in memory; measured on {result.num_tokens} tokens of "
        f"{result.num_sequences} sequences, {result.data}, and {result.num_asked} sequences of the probe"
    ]
    for fault in result.faults_planted:
        lines.append(fault.title)
        lines += [
            f"  {MEASURES[name]:<17} {noticed_words(fault, name):<24} {figures(fault, name)}"
            for name in fault.measures
        ]
    lines += [f"{what}: not tried: {why}" for what, why in result.left_out.items()]
    return "\n".join(map(visible, lines))
