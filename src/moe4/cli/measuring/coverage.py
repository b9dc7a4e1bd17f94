"""`moe4 coverage`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.options import TrustRemoteCode
from moe4.cli.output import echo, echo_json
from moe4.cli.source import Revision, find


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of the source checkpoint, or its id on the hub.")
    ],
    revision: Revision = None,
    calibration: Annotated[
        Path | None, typer.Option(help="JSONL of {messages, tools} or {text}; reference: k2-tiny's own.")
    ] = None,
    num_documents: Annotated[int | None, typer.Option(min=1, help="Only the first N documents.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer documents are cut.")] = 1024,
    cold_tokens: Annotated[int, typer.Option(min=1, help="An expert with fewer tokens is cold.")] = 512,
    choose: Annotated[
        int | None, typer.Option(min=1, help="Choose N documents that reach the experts evenly.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSONL file for the chosen documents.")
    ] = None,
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="JSONL of questions that must not be in it; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda.")] = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Count the tokens that a calibration file sends to every expert; name the cold ones and what to add.

    With --evaluation, exit 1 if calibration and evaluation share text.
    """
    from moe4.errors import CalibrationError
    from moe4.evaluate.coverage import coverage as module
    from moe4.evaluate.coverage.overlap import find_overlap, read_questions
    from moe4.files.durable import check_output, write_output

    if (choose is None) != (output is None):
        raise CalibrationError("--choose N and --output FILE go together")
    if output is not None:
        check_output(output)
    options = module.CoverageOptions(
        model=find(model, revision),
        calibration=calibration,
        num_documents=num_documents,
        max_sequence_tokens=max_tokens,
        cold_tokens=cold_tokens,
        choose=choose,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    questions = [question for path in evaluation or () for question in read_questions(path)]
    found = module.measure(options, say=lambda text: echo(text, err=True))
    chosen = None if choose is None else module.choose(found.counts, choose)
    taken = range(len(found.documents)) if chosen is None else chosen
    if output is not None:
        lines = [json.dumps(found.documents[place][1], ensure_ascii=False) for place in taken]
        write_output(output, "\n".join(lines) + "\n")
    texts = [(found.documents[n][0], module.document_text(found.documents[n][1])) for n in taken]
    overlap = find_overlap(texts, questions) if questions else None
    result = module.summarize(found, cold_tokens, chosen, overlap)
    if as_json:
        echo_json(result.to_dict(), ensure_ascii=False)
    else:
        echo(module.describe(result))
    if overlap is not None and overlap.num_overlapping:
        raise typer.Exit(1)
