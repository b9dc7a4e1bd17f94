"""`moe4 coverage`."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo_result
from moe4.cli.progress import progress

CHOICE = "Choose documents"
EXAMPLES = (
    "moe4 coverage Kimi-K2-Instruct --calibration chats.jsonl",
    "moe4 coverage Kimi-K2-Instruct --calibration chats.jsonl --choose 512 --output chosen.jsonl",
    "moe4 coverage Kimi-K2-Instruct --calibration chats.jsonl --evaluation questions.jsonl",
)

Model: TypeAlias = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder of the source checkpoint, or its id on the hub.")
]
Calibration: TypeAlias = Annotated[
    Path | None, typer.Option(help="JSONL of {messages, tools} or {text}; or `reference`, k2-tiny's data.")
]
NumDocuments: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Use only the first N documents.")]
MaxTokens: TypeAlias = Annotated[int, typer.Option(min=1, help="Cut documents to this many tokens.")]
ColdTokens: TypeAlias = Annotated[int, typer.Option(min=1, help="An expert that gets fewer tokens is cold.")]
Choose: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Choose N documents that reach the experts evenly.", rich_help_panel=CHOICE),
]
Output: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="JSONL file for the chosen documents.", rich_help_panel=CHOICE),
]
Evaluation: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(help="JSONL of questions that the calibration must not contain; may be repeated."),
]


def command(
    model: Model,
    revision: options.Revision = None,
    calibration: Calibration = None,
    num_documents: NumDocuments = None,
    max_tokens: MaxTokens = 1024,
    cold_tokens: ColdTokens = 512,
    choose: Choose = None,
    output: Output = None,
    evaluation: Evaluation = None,
    device: options.Device = "cpu",
    family_as_is: options.FamilyAsIs = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Count the calibration tokens that reach each expert.

    Names the experts that few tokens reach, and documents to add. With --evaluation, exits with 1 if
    calibration and evaluation share text.
    """
    with progress("loading") as shown:
        result = moe4.coverage(
            model,
            calibration,
            revision=revision,
            num_documents=num_documents,
            max_tokens=max_tokens,
            cold_tokens=cold_tokens,
            choose=choose,
            output=output,
            evaluation=evaluation or (),
            device=device,
            family_as_is=family_as_is,
            trust_remote_code=trust_remote_code,
            on_progress=shown,
        )
    echo_result(result, as_json, ensure_ascii=False)
    if not result.ok:
        raise typer.Exit(1)
