"""Arguments and options that several commands share, with their help."""

import enum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

RECIPE = "Recipe"
RUN = "Run"
CARD = "Model card"
MACHINE = "Machine"
SERVER = "Server"
OBJECTS = "Kubernetes objects"


class MethodOption(enum.StrEnum):
    """How weights become codes."""

    GPTQ = "gptq"
    RTN = "rtn"
    COPY = "copy"


class TargetsOption(enum.StrEnum):
    """What is quantized."""

    EXPERTS = "experts"
    ALL = "all"


class DtypeOption(enum.StrEnum):
    """What the layers compute in."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

# Checkpoints and releases. Commands pass them on unchanged; the API checks them.
Source: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Folder of the source checkpoint (BF16, FP8, FP4, INT8 or INT4), or its id on the hub.",
    ),
]
PlannedSource: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Folder of the source checkpoint or of its config.json alone, or an id on the hub.",
    ),
]
Release: TypeAlias = Annotated[str, typer.Argument(metavar="RELEASE", help="Folder of its release.")]
FoundRelease: TypeAlias = Annotated[
    str, typer.Argument(metavar="RELEASE", help="Folder of its release, or ID[@REVISION] on the hub.")
]
CheckedRelease: TypeAlias = Annotated[
    str, typer.Argument(metavar="OUT", help="Folder of the release, or its id on the hub.")
]
MadeRelease: TypeAlias = Annotated[str, typer.Argument(metavar="OUT", help="Folder of the release.")]
SizedRelease: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="RELEASE", help="Folder of a release, a config.json, or a repository on the hub (org/name)."
    ),
]
Out: TypeAlias = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the release; new or empty.")]
PlannedOut: TypeAlias = Annotated[
    Path | None, typer.Argument(metavar="OUT", help="Where the release would go. Nothing is written.")
]
OtherSource: TypeAlias = Annotated[
    str | None, typer.Option(help="Source checkpoint to compare with: a folder, or ID[@REVISION].")
]

# The recipe.
Recipe: TypeAlias = Annotated[
    Path | None, typer.Option(help="Recipe in TOML; options below override it.", rich_help_panel=RECIPE)
]
Method: TypeAlias = Annotated[
    MethodOption | None,
    typer.Option(
        help="gptq; rtn, round to nearest; or copy, keep the source's INT4 codes.", rich_help_panel=RECIPE
    ),
]
GroupSize: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Number of codes that share a scale: 32, 64 or 128. By default the largest that leaves "
        "experts two groups.",
        rich_help_panel=RECIPE,
    ),
]
Targets: TypeAlias = Annotated[
    TargetsOption | None,
    typer.Option(
        help="experts, or all: also attention, shared experts and dense MLPs.", rich_help_panel=RECIPE
    ),
]
Calibration: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="JSON lines, a JSON array or Parquet with messages, conversations, prompt and response, or "
        "text; OWNER/NAME of a data set on the hub; or `reference`, k2-tiny's data.",
        rich_help_panel=RECIPE,
    ),
]
CalibrationSplit: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Split of a data set on the hub or in a folder, such as train.", rich_help_panel=RECIPE
    ),
]
NumSequences: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Number of calibration documents; overrides the recipe's num_sequences.", rich_help_panel=RECIPE
    ),
]
SequenceLength: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Cut documents to this many tokens; overrides the recipe's max_sequence_tokens.",
        rich_help_panel=RECIPE,
    ),
]
Seed: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Seed for drawing documents; overrides the recipe's seed.", rich_help_panel=RECIPE),
]
ShowSample: TypeAlias = Annotated[
    bool, typer.Option("--show-sample", help="Show the first document as the chat template renders it.")
]
PlannedBudget: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Report a problem if the run may need more memory than this, such as 4GiB.", rich_help_panel=RUN
    ),
]
Revision: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of a repository on the hub; main by default."),
]
Stream: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Download shards from the hub as layers need them, and delete them after use.",
        rich_help_panel=RUN,
    ),
]
StreamSource: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Download the source's shards from the hub one after another, and delete them after use.",
    ),
]
MemoryBudget: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Refuse a run that may need more memory than this, such as 4GiB.", rich_help_panel=RUN),
]

# The run.
Device: TypeAlias = Annotated[
    str, typer.Option(help="Where to compute: cpu, cuda, cuda:1.", rich_help_panel=RUN)
]
Resume: TypeAlias = Annotated[
    bool, typer.Option("--resume", help="Continue an unfinished run in OUT.", rich_help_panel=RUN)
]
AllowExtra: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--allow-extra",
        help="Leave out tensors that the model has no place for, instead of refusing SOURCE.",
        rich_help_panel=RUN,
    ),
]
FamilyAsIs: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--family-as-is",
        help="Try a family that is not listed, if a small random model of it passes.",
        rich_help_panel=RUN,
    ),
]
TrustRemoteCode: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Let the tokenizer run the checkpoint's own code.", rich_help_panel=RUN
    ),
]
TimeIt: TypeAlias = Annotated[
    bool, typer.Option("--time/--no-time", help="Solve one expert of random weights to estimate the time.")
]
Work: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder for hidden states; the system's temporary folder by default.", rich_help_panel=RUN
    ),
]
TensorParallelSize: TypeAlias = Annotated[
    int,
    typer.Option(
        "--tensor-parallel-size",
        "-tp",
        min=1,
        help="GPUs to split the models over.",
        rich_help_panel=RUN,
    ),
]
Limit: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Only the first N questions of each task.")]
NumDocuments: TypeAlias = Annotated[int, typer.Option(min=1, help="Number of documents to read.")]
MaxTokens: TypeAlias = Annotated[int, typer.Option(min=2, help="Cut documents to this many tokens.")]
Cache: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Folder of kept answers; ~/.cache/moe4/evaluations by default.", rich_help_panel=RUN),
]
JsonOutput: TypeAlias = Annotated[
    Path | None, typer.Option(help="Also write the result to this JSON file.", rich_help_panel=RUN)
]
HeldOutText: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="JSONL of held-out {messages} or {text}, moe4's own by default; or `reference`, k2-tiny's."
    ),
]
Requests: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(
        help="JSONL of request bodies, such as the K2 Vendor Verifier's; may be repeated. By default moe4's "
        "hard cases; `reference` adds k2-tiny's turns."
    ),
]

# A server that is asked.
Url: TypeAlias = Annotated[
    str, typer.Argument(metavar="URL", help="Address of the server, with or without /v1.")
]
ServedModel: TypeAlias = Annotated[
    str | None, typer.Option(help="Model name; by default the first that the server lists.")
]
Timeout: TypeAlias = Annotated[float, typer.Option(help="Seconds to wait for an answer.")]
Insecure: TypeAlias = Annotated[
    bool, typer.Option("--insecure", help="Do not check the server's certificate.")
]

# The model card.
Repo: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="OWNER/NAME of the release on the hub, for the commands in the card.", rich_help_panel=CARD
    ),
]
BaseModel: TypeAlias = Annotated[
    str | None, typer.Option(help="OWNER/NAME of the source on the hub.", rich_help_panel=CARD)
]
LicenseName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--license", help="The hub's name for the licence, if moe4 does not find it.", rich_help_panel=CARD
    ),
]
ProofFolder: TypeAlias = Annotated[
    Path | None, typer.Option(help="Folder of the measured results; OUT/proof by default.")
]

# The machine that is to serve.
Gpu: TypeAlias = Annotated[
    str | None,
    typer.Option(help="GPU: l40s, a100, h100, h200, b200 or mi300x.", rich_help_panel=MACHINE),
]
GpuMemory: TypeAlias = Annotated[
    float | None,
    typer.Option(help="Memory in GiB of a GPU that is not listed.", rich_help_panel=MACHINE),
]
NumGpus: TypeAlias = Annotated[
    int | None,
    typer.Option("--gpus", help="Number of GPUs; by default the fewest that work.", rich_help_panel=MACHINE),
]
CpuMemory: TypeAlias = Annotated[
    float | None,
    typer.Option(help="Memory in GiB of a CPU server, with --engine cpu.", rich_help_panel=MACHINE),
]
TensorParallel: TypeAlias = Annotated[
    int | None, typer.Option(help="Split each matrix over this many GPUs.", rich_help_panel=MACHINE)
]
PipelineParallel: TypeAlias = Annotated[
    int | None, typer.Option(help="Split the layers over this many stages.", rich_help_panel=MACHINE)
]
DataParallel: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Number of copies of everything except the routed experts; needs --expert-parallel.",
        rich_help_panel=MACHINE,
    ),
]
ExpertParallel: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--expert-parallel",
        help="Split the routed experts by number, not by width.",
        rich_help_panel=MACHINE,
    ),
]
MaxModelLen: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS",
        help="Longest conversation, in tokens, also as 32k or 32K; the model's own limit by default.",
    ),
]
Concurrency: TypeAlias = Annotated[int, typer.Option(help="Conversations of that length at the same time.")]
ConfigGroupSize: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Group size to assume if RELEASE is only a config; by default the one `quantize` would choose."
    ),
]
Plugin: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--plugin", help="Assume that vLLM has moe4's plugin, which corrects experts with one group per GPU."
    ),
]
Disk: TypeAlias = Annotated[
    float, typer.Option(help="Speed at which weights load, in GB/s.", rich_help_panel=MACHINE)
]
