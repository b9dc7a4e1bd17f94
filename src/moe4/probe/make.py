"""`moe4 probe RELEASE`: make the expected answers of a release that has none."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from moe4.arguments import argument
from moe4.calibration.tokenizer import load_tokenizer
from moe4.checkpoint.release_folder import REPORT_NAME, dump_json
from moe4.checkpoint.report_file import ReportedProbe, list_file, read_report
from moe4.errors import CalibrationError, OutputError, ProbeError
from moe4.escape import visible
from moe4.files.durable import check_output, write_output
from moe4.forward.device import usable_device
from moe4.forward.trial import try_family
from moe4.forward.weights import Weights, open_model
from moe4.model.architecture import Network
from moe4.probe.form import (
    OPTIONAL,
    PROBE_NAME,
    Expectation,
    ExpectedAnswers,
    ProbeSequence,
    Reach,
    encode_probe,
)
from moe4.probe.passes import ProbePasses, count_pairs
from moe4.probe.sequences import Chosen, choose_sequences
from moe4.progress import OnProgress, Pace, ignore
from moe4.units import layer_done

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeOptions:
    """The options of `moe4 probe` that make the file."""

    release: Path
    source: Path | None = None
    output: Path | None = None
    force: bool = False
    device: str = "cpu"
    family_as_is: bool = False
    trust_remote_code: bool = False

    @property
    def path(self) -> Path:
        """Where the file goes."""
        return self.output or self.release / PROBE_NAME


def make_probe(options: ProbeOptions, say: Say, on_progress: OnProgress = ignore) -> ExpectedAnswers:
    """Make and write the file; return what it holds.

    Raises CheckpointError, OutputError where the file is there already, or ProbeError.
    """
    check_output(options.path)
    if options.path.exists() and not options.force:
        raise OutputError(f"{options.path} already exists; {argument('force', True)} overwrites it")
    as_is = options.family_as_is
    release, network = open_model(options.release, torch.float32, family_as_is=as_is)
    try_family(release.config)
    models: dict[str, Weights] = {"released": release}
    if options.source is not None:
        models["source"], other = open_model(options.source, torch.float32, family_as_is=as_is)
        _check_alike(options, network, other)
    try:
        tokenizer = load_tokenizer(
            options.release, network.config, trust_remote_code=options.trust_remote_code
        )
    except CalibrationError as error:
        raise ProbeError(str(error)) from error
    chosen, remarks = choose_sequences(tokenizer, int(network.config.vocab_size))
    with tempfile.TemporaryDirectory(prefix="moe4-probe-") as work:
        tokens = [sequence.tokens for sequence in chosen]
        passes = ProbePasses(models, network, tokens, Path(work), usable_device(options.device))
        num_unreached = _run_layers(passes, say, on_progress)
        expected = {name: passes.expectations(name) for name in passes.streams}
    answers = assemble(
        str(models["released"].config.model_type),
        chosen,
        remarks,
        expected,
        Reach(num_pairs=count_pairs(network), num_unreached=num_unreached),
    )
    _write(options, answers)
    return answers


def assemble(
    model_type: str,
    chosen: list[Chosen],
    remarks: list[str],
    expected: dict[str, list[Expectation]],
    experts: Reach,
) -> ExpectedAnswers:
    """Put a file's content together. `expected` holds "released", and some of form.OPTIONAL."""
    others = {name: expected[name] for name in OPTIONAL if name in expected}
    return ExpectedAnswers(
        model_type=model_type,
        sequences=[
            ProbeSequence(
                kind=sequence.kind,
                tokens=sequence.tokens,
                released=expected["released"][place],
                **{name: found[place] for name, found in others.items()},
            )
            for place, sequence in enumerate(chosen)
        ],
        experts=experts,
        remarks=[visible(remark) for remark in remarks],
    )


def _run_layers(passes: ProbePasses, say: Say, on_progress: OnProgress) -> int:
    """Run every layer; return how many (layer, expert) pairs no token of the release goes to."""
    network, started, num_unreached = passes.network, time.monotonic(), 0
    pace = Pace(on_progress, "computing")
    passes.embed()
    for layer in range(network.num_layers):
        pace.layer(layer, network.num_layers)
        passes.attend(layer)
        num_unreached += passes.num_unreached()
        shape = network.experts[layer]
        for expert in range(shape.num_experts if shape else 0):
            assert shape is not None
            for name, stream in passes.streams.items():
                passes.add(name, expert, passes.run(name, expert, stream.load_expert(shape, expert)))
        passes.finish_layer()
        seconds = (time.monotonic() - started) / (layer + 1) * (network.num_layers - layer - 1)
        say(f"{layer_done(layer, network.num_layers)}, {seconds:.0f} s left")
    return num_unreached


def _check_alike(options: ProbeOptions, release: Network, source: Network) -> None:
    for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
        ours, theirs = getattr(release.config, name), getattr(source.config, name)
        if ours != theirs:
            raise ProbeError(
                f"{options.source} is not the source of {options.release}: {name} is {theirs}, not {ours}"
            )


def _write(options: ProbeOptions, answers: ExpectedAnswers) -> None:
    """Write the file; where it is the release's own, list it in the release's report too."""
    path = options.path
    write_output(path, encode_probe(answers))
    report_path = options.release / REPORT_NAME
    if path.resolve().parent != options.release.resolve() or not report_path.is_file():
        return
    report = read_report(options.release)
    files = {**(report.release.files or {}), PROBE_NAME: list_file(path)}
    changed = report.model_copy(
        update={
            "probe": report_entry(answers),
            "release": report.release.model_copy(update={"files": files}),
        }
    )
    write_output(report_path, dump_json(changed.as_dict()))


def report_entry(answers: ExpectedAnswers) -> ReportedProbe:
    """Return what `moe4-report.json` says of the file."""
    return ReportedProbe(num_sequences=len(answers.sequences), num_tokens=answers.num_tokens)
