"""`moe4 eval` where no task is named: what can be measured of any model, and what else could be had.

Two folders: their predictions of moe4's own text are compared. A server: its tool calls are checked.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from moe4.arguments import argument
from moe4.errors import EvaluationError
from moe4.evaluate.comparison.compare import NUM_SEQUENCES, CompareOptions, check_comparison, compare
from moe4.evaluate.comparison.compare import describe as describe_comparison
from moe4.evaluate.harness.evaluation import EvaluationOptions, write_json
from moe4.evaluate.harness.request import TASKS
from moe4.evaluate.result_files import ComparisonFile, ToolcheckFile, to_json
from moe4.evaluate.toolcheck.run import ToolcheckOptions, run_toolcheck
from moe4.evaluate.toolcheck.summary import describe as describe_tools
from moe4.files.durable import check_output
from moe4.progress import OnProgress, Pace, ignore
from moe4.strict_json import JsonObject

NO_SERVER = "moe4 prove SOURCE OUT serves both models and checks their tool calls"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured without a task; `left_out` has, for each other part, what it would need."""

    comparison: ComparisonFile | None = None
    tools: ToolcheckFile | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> JsonObject:
        """Return plain JSON types; no part that was left out."""
        parts = {"comparison": self.comparison, "tools": self.tools}
        found: JsonObject = {name: to_json(part) for name, part in parts.items() if part is not None}
        return {**found, "left_out": self.left_out}

    def __str__(self) -> str:
        """Return what was found, and what else could be had, as text."""
        parts = [
            describe_comparison(self.comparison) if self.comparison else "",
            describe_tools(self.tools) if self.tools else "",
            *(f"{part}: not measured: {why}" for part, why in self.left_out.items()),
        ]
        return "\n".join(filter(None, parts))


def measure_without_tasks(
    options: EvaluationOptions, say: Callable[[str], None], on_progress: OnProgress = ignore
) -> Measured:
    """Return what can be measured. Raises EvaluationError where that is nothing, before anything is done."""
    if options.output is not None:
        check_output(options.output)
    left_out = {"accuracy": _no_task()}
    if options.base_url is not None:
        asked = ToolcheckOptions(
            base_url=options.base_url,
            model=options.model,
            against=options.base_url if options.against else None,
            against_model=options.against,
            limit=options.limit,
        )
        say(f"checking tool calls of {options.model}; no task is named")
        left_out["predictions"] = "moe4 compare SOURCE OUT compares two folders"
        found = Measured(tools=run_toolcheck(asked, Pace(on_progress, "asking").count), left_out=left_out)
    elif options.against is not None:
        compared = CompareOptions(
            source=Path(options.against),
            release=Path(options.model),
            num_sequences=options.limit or NUM_SEQUENCES,
            trust_remote_code=options.trust_remote_code,
        )
        check_comparison(compared)
        say("comparing predictions, token by token; no task is named")
        left_out["tools"] = NO_SERVER
        found = Measured(comparison=compare(compared, say, on_progress), left_out=left_out)
    else:
        raise EvaluationError(
            f"nothing to measure {options.model} with: {_no_task()}; or give "
            f"{argument('against', 'SOURCE')}, the checkpoint before quantization"
        )
    if options.output is not None:
        write_json(options.output, found.as_dict())
    return found


def _no_task() -> str:
    return f"give {argument('tasks')}: {', '.join(TASKS)} or any other of lm-evaluation-harness"
