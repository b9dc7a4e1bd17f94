"""`moe4 tune`."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo_result
from moe4.cli.progress import progress

TRAINING = "Training"
EXAMPLES = (
    "moe4 tune Kimi-K2-Instruct OUT TUNED --calibration chats.jsonl --device cuda",
    "moe4 tune reference/k2-tiny OUT TUNED --calibration reference",
)

Tuned: TypeAlias = Annotated[
    Path, typer.Argument(metavar="OUT", help="New or empty folder for the tuned release.")
]
Text: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Text to learn from: a file or data set as `moe4 quantize` takes it; or `reference`, k2-tiny's.",
    ),
]
NumSequences: TypeAlias = Annotated[
    int, typer.Option(min=20, help="Number of documents to draw; a tenth is held back to measure on.")
]
Seed: TypeAlias = Annotated[
    int, typer.Option(min=0, max=(1 << 32) - 1, help="Seed for drawing and ordering documents.")
]
Epochs: TypeAlias = Annotated[
    int, typer.Option(min=1, max=1000, help="Passes over the text.", rich_help_panel=TRAINING)
]
LearningRate: TypeAlias = Annotated[
    float,
    typer.Option(min=1e-6, max=0.1, help="Of Adam, for a scale's relative change.", rich_help_panel=TRAINING),
]
BatchTokens: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Tokens of a step, at least.", rich_help_panel=TRAINING)
]


def command(
    source: options.Source,
    release: options.Release,
    out: Tuned,
    revision: options.Revision = None,
    calibration: Text = None,
    num_sequences: NumSequences = 768,
    max_tokens: options.MaxTokens = 1024,
    seed: Seed = 0,
    epochs: Epochs = 4,
    learning_rate: LearningRate = 1e-3,
    batch_tokens: BatchTokens = 8192,
    device: options.Device = "cpu",
    work: options.Work = None,
    resume: options.Resume = False,
    family_as_is: options.FamilyAsIs = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Bring a release closer to its source by learning its experts' scales.

    Trains the scales of all layers together, by gradient, to lower the KL divergence of the release's
    answers from the source's. The codes, the format, the size and the speed stay. Both models run one layer
    at a time. Prints the gain on text that it did not learn from; where there is none, it writes nothing.
    """
    with progress("loading") as shown:
        report = moe4.tune(
            source,
            release,
            out,
            revision=revision,
            calibration=calibration,
            num_sequences=num_sequences,
            max_tokens=max_tokens,
            seed=seed,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_tokens=batch_tokens,
            device=device,
            work=work,
            resume=resume,
            family_as_is=family_as_is,
            trust_remote_code=trust_remote_code,
            on_progress=shown,
        )
    echo_result(report, as_json, ensure_ascii=False)
