"""Options that several commands share."""

import enum
from pathlib import Path
from typing import Annotated

import typer


class MethodOption(enum.StrEnum):
    """How weights become codes."""

    GPTQ = "gptq"
    RTN = "rtn"
    COPY = "copy"


class TargetsOption(enum.StrEnum):
    """What is quantized."""

    EXPERTS = "experts"
    ALL = "all"


Recipe = Annotated[Path | None, typer.Option(help="Recipe in TOML; options below override it.")]
Method = Annotated[
    MethodOption | None, typer.Option(help="gptq; rtn: round to nearest; copy: keep the source's INT4 codes.")
]
GroupSize = Annotated[
    int | None,
    typer.Option(
        help="Codes that share a scale: 32, 64, 128; the largest that leaves experts two groups if not given."
    ),
]
Targets = Annotated[
    TargetsOption | None,
    typer.Option(help="experts, or all: attention, shared experts and dense MLPs too."),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        help="JSON lines, a JSON array or Parquet of messages, conversations, prompt and response, or text; "
        "OWNER/NAME of a data set on the hub; reference: k2-tiny's own."
    ),
]
CalibrationSplit = Annotated[
    str | None, typer.Option(help="Split of a data set on the hub, or of a folder of one, such as train.")
]
NumSequences = Annotated[
    int | None, typer.Option(help="Calibration documents to use; overrides num_sequences of the recipe.")
]
SequenceLength = Annotated[
    int | None,
    typer.Option(help="Longer documents are cut to so many tokens; overrides max_sequence_tokens."),
]
Seed = Annotated[int | None, typer.Option(help="Draws the documents; overrides seed of the recipe.")]
ShowSample = Annotated[
    bool, typer.Option("--show-sample", help="Show the first document as the chat template renders it.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the tokenizer run the checkpoint's own code.")
]
Stream = Annotated[
    bool,
    typer.Option("--stream", help="Fetch the shards from the hub as layers need them, and drop them after."),
]
AllowExtra = Annotated[
    bool,
    typer.Option(
        "--allow-extra", help="Go on if SOURCE has tensors the model has no place for; they are left out."
    ),
]

NumGpus = Annotated[int | None, typer.Option("--gpus", help="How many; the fewest that work if not given.")]
DataParallel = Annotated[
    int | None, typer.Option(help="Copies of all but the routed experts; needs --expert-parallel.")
]
ExpertParallel = Annotated[
    bool, typer.Option("--expert-parallel", help="Split the routed experts by number, not by width.")
]
MaxModelLen = Annotated[
    int | None, typer.Option(help="Tokens a conversation may have; the model's own limit if not given.")
]
Concurrency = Annotated[int, typer.Option(help="Conversations of that length at once.")]
ConfigGroupSize = Annotated[
    int | None,
    typer.Option(
        help="Of the release that a config alone would become; what `quantize` would choose if not given."
    ),
]
Plugin = Annotated[
    bool, typer.Option("--plugin", help="vLLM has moe4's plugin, which corrects experts of one group a GPU.")
]
