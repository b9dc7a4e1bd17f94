"""What a case does: a command line that would work, its inputs damaged, its options made odd."""

import contextlib
import importlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, get_type_hints

from fuzz.damaged_files import clutter, damage, rename
from fuzz.hostile_server import serving
from fuzz.seeds import COPIED, FORMS, ON_A_CLUSTER, SEVERAL_MACHINES, SOURCES
from typer.main import get_command

from moe4.cli.app import COMMANDS, app

NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "64",
    "1000000",
    "99999999999999999999",
    "1.5",
    "",
    "x",
    "1e3",
    "٣",
    " 5",
)
FRACTIONS = ("0", "-1", "0.5", "1e-320", "1e308", "nan", "inf", "-inf", "x", "", "1_0")
TEXTS = (
    "",
    " ",
    "x",
    "a/b",
    "a\nb",
    "\x1b[31mred",
    "été",
    "a" * 5000,
    "-",
    "-x",
    "../..",
    "{{x}}",
    "$(id)",
    "a=b",
    "a=b:NoExecute",
    "k:v",
    "\udcff",
    "'",
    '"',
    "oci://x:y",
    "hf://a/b",
    "pvc://a/b/c",
    "file:///srv/a:b",
    "http://[::1",
    "http://127.0.0.1:1",
    "h200",
    "cpu",
    "int8",
    "rtn",
    "2GiB",
)
PATHS = (
    "no/such",
    "",
    ".",
    "folder",
    "pipe",
    "file.txt",
    "empty.json",
    "-",
    "a\nb",
    "x" * 300,
    "\udcff",
    "loop",
)
EXPECTED = "release/moe4-probe.json"
VALUES = {"int": NUMBERS, "float": FRACTIONS, "Path": PATHS}
# What would leave the sandbox, take long, or is what makes a case end at all.
KEPT = (
    "--help",
    "--cluster",
    "--push",
    "--yes",
    "--measure",
    "--retries",
    "--timeout",
    "--print-command",
    "--time",
)


@dataclass(kw_only=True)
class Case:
    """A case while it is made. Names are relative to its folder, the working directory."""

    rng: Random
    seeds: Path
    notes: list[str] = field(default_factory=list)
    address: str = ""

    def take(self, name: str) -> str:
        """Copy a sound input."""
        source, target = self.seeds / name, Path(name).name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
        return target

    def spoil(self, name: str) -> str:
        """Damage a file, or files of a folder; return its name, perhaps a new one."""
        path, rng = Path(name), self.rng
        if path.is_dir():
            for _ in range(rng.choice([1, 1, 1, 2])):
                self._spoil_one_of(path)
            if rng.random() < 0.05:
                self.notes.append(f"{name}: {clutter(path, rng)}")
            if rng.random() < 0.05:
                path = rename(path, rng)
        else:
            for _ in range(rng.choice([1, 1, 2])):
                if path.is_file() and not path.is_symlink():
                    self.notes.append(f"{name}: {damage(path, rng)}")
        text = str(path) if not str(path).startswith("-") else f"./{path}"
        return self.rng.choice([text] * 8 + [f"./{text}/../{text}", str(path.absolute()), f"{text}/"])

    def _spoil_one_of(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        if not files:
            return
        kinds: dict[str, list[Path]] = {}
        for path in files:  # each kind alike, or the many would be all that is damaged
            kinds.setdefault("config.json" if path.name == "config.json" else path.suffix, []).append(path)
        weights = [3 if kind in ("config.json", ".json", ".safetensors") else 1 for kind in kinds]
        path = self.rng.choice(self.rng.choices(list(kinds.values()), weights)[0])
        self.notes.append(f"{path}: {damage(path, self.rng)}")

    def source(self) -> str:
        """Return a source checkpoint, most often a damaged one."""
        return self.maybe_spoil(self.rng.choice(SOURCES), 0.85)

    def release(self) -> str:
        """Return a release, most often a damaged one."""
        return self.maybe_spoil("release", 0.85)

    def data(self, name: str, damaged: float = 0.5) -> str:
        """Return a file of data, damaged so often."""
        return self.maybe_spoil(f"data/{name}", damaged)

    def maybe_spoil(self, name: str, damaged: float) -> str:
        """Copy a sound input, and damage it so often."""
        taken = self.take(name)
        return self.spoil(taken) if self.rng.random() < damaged else taken


def plan(case: Case) -> list[str]:
    """Plan a damaged source."""
    return ["plan", case.source(), "--no-time", *_calibrated(case, 0.3), *_maybe(case, "out", "--json")]


def quantize(case: Case) -> list[str]:
    """Quantize a damaged source, or with damaged calibration or recipe."""
    method = case.rng.choice([["--method", "rtn"], []])
    return ["quantize", case.source(), "out", *method, *_calibrated(case, 0.4), *_maybe(case, "--json")]


def resume(case: Case) -> list[str]:
    """Go on with a run whose folder was damaged after it was killed."""
    out = case.spoil(case.take("unfinished"))
    calibrated = ["--calibration", case.data("calibration.jsonl", 0.1), "--num-sequences", "2"]
    return ["quantize", case.take("k2"), out, *calibrated, "--resume"]


def verify(case: Case) -> list[str]:
    """Verify a damaged release, some with a source."""
    if case.rng.random() < 0.3:
        copied, source = case.take("copied"), case.take(COPIED)
        if case.rng.random() < 0.5:
            source = case.spoil(source)
        else:
            copied = case.spoil(copied)
        return ["verify", copied, "--source", source, *_maybe(case, "--json")]
    from_source = ["--source", case.take("k2")] if case.rng.random() < 0.4 else []
    return ["verify", case.release(), *from_source, *_maybe(case, "--json")]


def fit(case: Case) -> list[str]:
    """Size a damaged source or release, or its config alone."""
    name = case.rng.choice([case.source, case.release, lambda: case.spoil(case.take("kimi"))])()
    alone = f"{name}/config.json" if case.rng.random() < 0.2 else name
    return ["fit", alone, *_maybe(case, "--json", "--expert-parallel", "--gpu=h100", "--gpus=2")]


def deploy(case: Case) -> list[str]:
    """Write a deployment for a damaged release."""
    form = case.rng.choice([*FORMS, "dashboard"])
    model = ["--model", case.rng.choice(["pvc://a/b", "hf://a/b", "oci://a/b:1", "file:///srv/x"])]
    several: list[str] = []
    if form in ON_A_CLUSTER and case.rng.random() < 0.4:
        name, several = case.maybe_spoil("kimi", 0.5), SEVERAL_MACHINES
    else:
        name = case.release() if case.rng.random() < 0.5 else case.take("release")
    return [
        "deploy",
        form,
        name,
        *model,
        *several,
        *_maybe(case, "--openshift", "--plugin", "-o=out.yaml", "--engine=cpu"),
    ]


def lint(case: Case) -> list[str]:
    """Lint damaged manifests, one or two together."""
    names = sorted(path.name for path in (case.seeds / "manifests").iterdir() if path.is_file())
    chosen = case.rng.sample(names, case.rng.choice([1, 1, 2]))
    files = [case.spoil(case.take(f"manifests/{name}")) for name in chosen]
    return [
        "lint",
        *files,
        *_maybe(case, "--fix", "--plugin", "--gpu=h100", case.rng.choice(["--json", "--sarif"])),
    ]


def lint_dashboard(case: Case) -> list[str]:
    """Lint a damaged dashboard and its alerts."""
    folder = case.spoil(case.take("manifests/dashboard"))
    return ["lint", *sorted(str(path) for path in Path(folder).iterdir()), *_maybe(case, "--fix")]


def card(case: Case) -> list[str]:
    """Write the card of a damaged release."""
    return ["card", case.release(), *_maybe(case, "--dry-run", "--repo=a/b", "--base-model=c/d", "--json")]


def report(case: Case) -> list[str]:
    """Write the report of a damaged release."""
    return ["report", case.release(), *_maybe(case, "-o=out.html")]


def results(case: Case) -> list[str]:
    """Read damaged results of an evaluation, a comparison or tool calls, or damaged expected answers."""
    release = case.take("release")
    files = ("proof/evaluation.json", "proof/comparison.json", "proof/toolcheck.json", "moe4-report.json")
    case.spoil(f"{release}/{case.rng.choice(files)}")
    return [case.rng.choice(["card", "report"]), release]


def compare(case: Case) -> list[str]:
    """Compare a damaged release or source."""
    source, release = case.take("k2"), case.take("release")
    if case.rng.random() < 0.4:
        source = case.spoil(source)
    else:
        release = case.spoil(release)
    few = ["--num-sequences", "2", "--max-tokens", "32"]
    return [
        "compare",
        source,
        release,
        "--data",
        case.data("calibration.jsonl"),
        *few,
        *_maybe(case, "--json"),
    ]


def coverage(case: Case) -> list[str]:
    """Measure the coverage of damaged calibration data."""
    questions = ["--evaluation", case.data("heldout-problems.jsonl")] if case.rng.random() < 0.5 else []
    chosen = ["--choose", "2", "-o", "chosen.jsonl"] if case.rng.random() < 0.3 else []
    model = case.source() if case.rng.random() < 0.5 else case.take("k2")
    data = ["--calibration", case.data("calibration.jsonl"), "--max-tokens", "32"]
    return ["coverage", model, *data, *questions, *chosen, *_maybe(case, "--json")]


def probe(case: Case) -> list[str]:
    """Make a damaged release's expected answers."""
    return ["probe", case.release(), "-o", "probe.json", *_maybe(case, "--json", "--force")]


def probe_server(case: Case) -> list[str]:
    """Ask a hostile server for a release's expected answers, which may be damaged too."""
    release = case.release() if case.rng.random() < 0.3 else case.maybe_spoil(EXPECTED, 0.7)
    return ["probe", release, "--url", case.address, "--timeout", "1", *_maybe(case, "--json")]


def smoke(case: Case) -> list[str]:
    """Test a hostile server."""
    answers = ["--probe", case.maybe_spoil(EXPECTED, 0.3)] if case.rng.random() < 0.4 else []
    return ["smoke", case.address, "--timeout", "1", *answers, *_maybe(case, "--json")]


def toolcheck(case: Case) -> list[str]:
    """Check a hostile server's tool calls, with damaged requests."""
    requests = ["--requests", case.data("heldout-tools.jsonl"), "--limit", "2"]
    more = ["--retries", "0", "--timeout", "1"]
    if case.rng.random() < 0.3:
        more += ["--reference", case.spoil(case.take("release/proof/toolcheck.json"))]
    url = f"{case.address}/v1"
    return [
        "toolcheck",
        url,
        *requests,
        *more,
        *_maybe(case, "--json", "--output=answers.jsonl", "--no-stream"),
    ]


def chat(case: Case) -> list[str]:
    """Chat with a hostile server."""
    return ["chat", "--base-url", f"{case.address}/v1", "--message", "Hi", *_maybe(case, "--json")]


def serve(case: Case) -> list[str]:
    """Print the command that would serve a damaged release."""
    return ["serve", case.release(), "--print-command", *_maybe(case, "--json", "--rest=int8", "--dtype=x")]


def prove(case: Case) -> list[str]:
    """Prove a damaged release without measuring anything."""
    skip = [word for part in ("evaluation", "comparison", "tools") for word in ("--skip", part)]
    return ["prove", case.take("k2"), case.release(), *skip, *_maybe(case, "--json", "--quick")]


def evaluate(case: Case) -> list[str]:
    """Ask a hostile server to be evaluated; the harness itself is not started."""
    url = ["--base-url", f"{case.address}/v1"] if case.rng.random() < 0.5 else []
    data = ["--task", "k2_tiny_problems", "--data-dir", case.take("data")]
    return ["eval", case.release(), *url, *data, "--cache", "cache", *_maybe(case, "--json", "--limit=1")]


def doctor(case: Case) -> list[str]:
    """Look at the machine."""
    return ["doctor", *_maybe(case, "--json")]


WEIGHTS: dict[Callable[[Case], list[str]], int] = {
    plan: 12,
    quantize: 10,
    resume: 8,
    verify: 10,
    fit: 10,
    deploy: 10,
    lint: 14,
    lint_dashboard: 2,
    card: 6,
    report: 6,
    results: 6,
    compare: 5,
    coverage: 4,
    probe: 4,
    probe_server: 4,
    smoke: 6,
    toolcheck: 4,
    chat: 3,
    serve: 8,
    prove: 2,
    evaluate: 2,
    doctor: 1,
}
ASKING = (probe_server, smoke, toolcheck, chat, evaluate)


def make_case(seed: int, number: int, seeds: Path, only: str | None, run: Callable[[list[str]], int]) -> int:
    """Make a case in the working directory and run it; a hostile server stands ready where it asks one."""
    rng = Random(f"{seed}:{number}")
    kinds = {kind: weight for kind, weight in WEIGHTS.items() if only in (None, kind.__name__)}
    (kind,) = rng.choices(list(kinds), list(kinds.values()))
    case = Case(rng=rng, seeds=seeds)
    _write_odd_paths()
    with contextlib.ExitStack() as stack:
        if kind in ASKING:
            case.address = stack.enter_context(serving(Random(rng.random())))
        arguments = kind(case)
        for _ in range(rng.choices([0, 1, 2, 3], [60, 25, 10, 5])[0]):
            arguments += odd_option(arguments[0], rng)
        _note(kind.__name__, case.notes, arguments)
        return run(arguments)


def odd_option(command: str, rng: Random) -> list[str]:
    """Return an option of the command with a value that may be anything."""
    program: Any = get_command(app)
    function = importlib.import_module(f"moe4.cli.{COMMANDS[command]}").command
    options = [item for item in program.commands[command].params if item.param_type_name == "option"]
    chosen = rng.choice([item for item in options if not set(item.opts) & set(KEPT)])
    name = rng.choice(chosen.opts)
    if chosen.is_flag:
        return [name]
    kind = str(get_type_hints(function).get(chosen.name, "str"))  # those of every command are not its own
    values = next((values for word, values in VALUES.items() if word in kind), TEXTS)
    return [name, rng.choice(values)]


def _write_odd_paths() -> None:
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("file.txt").write_text("text\n")
    Path("empty.json").touch()
    Path("loop").symlink_to("loop")


def _calibrated(case: Case, damaged: float) -> list[str]:
    found = ["--calibration", case.data("calibration.jsonl", damaged), "--num-sequences", "2"]
    if case.rng.random() < 0.3:
        recipes = sorted(path.name for path in (case.seeds / "data" / "recipes").iterdir())
        found += ["--recipe", case.data(f"recipes/{case.rng.choice(recipes)}", 0.8)]
    return found


def _maybe(case: Case, *options: str) -> list[str]:
    """Return some of the options; `--a=b` may also be two words."""
    found: list[str] = []
    for option in options:
        if case.rng.random() < 0.3:
            name, equals, value = option.partition("=")
            found += [name, value] if equals else [option]
    return found


def _note(kind: str, notes: list[str], arguments: list[str]) -> None:
    """Leave beside the case's files what was done."""
    text = repr({"kind": kind, "notes": notes, "arguments": arguments})
    Path("..", "case").write_bytes(text.encode("utf-8", "surrogatepass"))
