"""`moe4 coverage`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.options import TrustRemoteCode
from moe4.cli.output import echo
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
    from moe4.evaluate.coverage.overlap import describe_overlap, find_overlap, read_questions
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
    result = module.summarize(found, cold_tokens)
    chosen = list(range(len(found.documents)))
    if choose is not None and output is not None:
        chosen = module.choose(found.counts, choose)
        result["chosen"] = module.compare_choice(found, chosen, cold_tokens)
        lines = [json.dumps(found.documents[place][1], ensure_ascii=False) for place in chosen]
        write_output(output, "\n".join(lines) + "\n")
    if questions:
        texts = [(found.documents[n][0], module.document_text(found.documents[n][1])) for n in chosen]
        result["overlap"] = find_overlap(texts, questions)
    text = module.describe(result)
    if questions:
        text += "\n" + describe_overlap(result["overlap"])
    echo(json.dumps(result, ensure_ascii=False) if as_json else text)
    if questions and result["overlap"]["num_overlapping"]:
        raise typer.Exit(1)
