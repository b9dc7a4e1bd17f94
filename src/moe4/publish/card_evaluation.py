"""What a model card says of the measurements: the section Evaluation, and the metrics that the hub reads."""

from collections.abc import Mapping

from moe4.escape import markdown_code as code
from moe4.escape import markdown_text as text
from moe4.escape import shell_line
from moe4.evaluate.result_files import PowerFile, TaskResult, ToolcheckFile
from moe4.publish.proof import Proof
from moe4.publish.words import CHANCES, MEASURES, power_rows, sentences, smallest_loss
from moe4.strict_json import JsonObject
from moe4.units import percent


def metrics(proof: Proof) -> list[JsonObject]:
    """Return the scores of tasks, for the card's front matter."""
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": task, "name": f"{task} ({result.num_fewshot}-shot)"},
            "metrics": [{"type": result.metric, "value": round(100 * result.score, 2)}],
        }
        for task, result in (proof.evaluation.tasks.items() if proof.evaluation else ())
    ]


def evaluation(proof: Proof) -> str:
    """Return the section, whether anything was measured or not."""
    parts = []
    tasks = proof.evaluation.tasks if proof.evaluation else {}
    if tasks:
        parts.append(
            "### Accuracy\n\n"
            "| task | shots | questions | before | after | recovery | 95 % interval | smallest loss shown |\n"
            "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
            + "\n".join(_task_row(name, result) for name, result in tasks.items())
        )
        parts += [
            f"{text(name)}: {text(' '.join(said))}"
            for name, result in tasks.items()
            if (said := sentences(result))
        ]
    if proof.comparison is not None:
        found = proof.comparison
        parts.append(
            f"### Predictions\n\nOn {found.num_tokens:,} held-out tokens ({text(found.data)}): KL divergence "
            f"from the source {found.kl.mean:.5f} nats a token, likeliest token the same for "
            f"{percent(found.top1_agreement)}, perplexity {found.perplexity.source:.4f} before and "
            f"{found.perplexity.release:.4f} after."
        )
    if proof.toolcheck is not None:
        parts.append(_tool_table(proof.toolcheck))
    if proof.power is not None:
        parts.append(_power_table(proof.power, tasks))
    if not parts:
        return "## Evaluation\n\nNot measured."
    return "## Evaluation\n\n" + "\n\n".join(parts) + "\n\nMeasured with moe4, with 95 % intervals."


def _task_row(name: str, result: TaskResult) -> str:
    change, before = result.change, result.baseline_score
    cells = [text(name), str(result.num_fewshot), f"{result.num_questions:,}"]
    cells += ["-" if before is None else percent(before), percent(result.score)]
    interval = change.recovery_interval if change else None
    cells.append(percent(change.recovery) if change and change.recovery is not None else "-")
    cells.append(f"{percent(interval[0])} to {percent(interval[1])}" if interval else "-")
    cells.append(smallest_loss(change) or "-")
    return f"| {' | '.join(cells)} |"


def _tool_table(found: ToolcheckFile) -> str:
    rows = [
        f"| {text(check.replace('_', ' '))} | {percent(measure.value, 1)} | "
        f"{percent(measure.interval[0], 1)} to {percent(measure.interval[1], 1)} |"
        for check, measure in found.release.measures.items()
        if measure
    ]
    table = f"### Tool calls\n\n{found.num_requests} requests:\n\n| check | share | interval |\n"
    table += "| --- | --- | --- |\n" + "\n".join(rows)
    if found.agreement and found.agreement.decision_agreement:
        share = percent(found.agreement.decision_agreement.value, 1)
        table += f"\n\nDecisions to call agree with the source's on {share}."
    return table


def _power_table(found: PowerFile, tasks: Mapping[str, TaskResult]) -> str:
    """Return which planted faults the measures noticed, and which losses the tasks would have shown."""
    heads = ["fault", *MEASURES.values()]
    rows = [[title, *cells.values()] for title, cells in power_rows(found)]
    table = "\n".join(f"| {' | '.join(map(text, row))} |" for row in (heads, *rows))
    head, _, body = table.partition("\n")
    section = (
        "### What this proof would have noticed\n\nFaults were planted in the release in memory, one at a "
        "time: which measure notices which, and from which size on.\n\n"
        f"{head}\n|{' --- |' * len(heads)}\n{body}"
    )
    losses = [
        f"{text(name)}: a loss of {loss} or more"
        for name, result in tasks.items()
        if (loss := smallest_loss(result.change))
    ]
    if losses:
        section += f"\n\nTasks, with a probability of {CHANCES}: {'; '.join(losses)}."
    if found.run is not None:
        section += f"\n\nMeasured with {code(shell_line(found.run.command))}."
    if found.left_out:
        reasons = "; ".join(f"{text(what)}: {text(why)}" for what, why in found.left_out.items())
        section += f"\n\nNot tried: {reasons}."
    return section
