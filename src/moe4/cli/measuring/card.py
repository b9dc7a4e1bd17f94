"""`moe4 card`."""

from typing import Annotated, TypeAlias

import typer

import moe4
from moe4.cli import options
from moe4.cli.messages import echo, echo_json, say, warn
from moe4.cli.progress import progress
from moe4.units import format_bytes

UPLOAD = "Upload"
EXAMPLES = (
    "moe4 card OUT --repo OWNER/NAME --base-model moonshotai/Kimi-K2-Instruct",
    "moe4 card OUT --push OWNER/NAME --dry-run",
)

Push: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Upload release and card to this repository, after asking.", rich_help_panel=UPLOAD),
]
Private: TypeAlias = Annotated[
    bool, typer.Option("--private", help="Create a private repository.", rich_help_panel=UPLOAD)
]
DryRun: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="Only show what would be written and uploaded.")
]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", help="Upload without asking.", rich_help_panel=UPLOAD)]


def command(
    out: options.MadeRelease,
    repo: options.Repo = None,
    base_model: options.BaseModel = None,
    license_name: options.LicenseName = None,
    proof: options.ProofFolder = None,
    push: Push = None,
    private: Private = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Write the model card, OUT/README.md; upload it if asked to.

    The card shows measured results only. moe4 keeps text that you wrote or changed in it.
    --push uses huggingface_hub's token (HF_TOKEN).
    """
    with progress("reading"):
        if push is not None:
            moe4.list_uploads(out, push)  # what must not be uploaded is refused before anything is written
        card = moe4.card(
            out,
            repo=push or repo,
            base_model=base_model,
            license_name=license_name,
            proof=proof,
            write=not dry_run,
        )
    if dry_run and not as_json:
        echo(card)
    for remark in card.remarks:
        warn(f"moe4: {remark}")
    result: dict[str, object] = {"card": str(card.path), "written": not dry_run, "uploaded": None}
    if push is not None:
        result["files"] = _show_uploads(out, push)
        if not dry_run and (yes or typer.confirm("Upload?", err=True)):
            result["uploaded"] = moe4.push(out, push, private=private)
    if as_json:
        echo_json(result)
    elif not dry_run:
        echo(result["uploaded"] or result["card"])


def _show_uploads(out: str, repo: str) -> list[str]:
    """Say what would be sent; return the files' names."""
    files = moe4.list_uploads(out, repo)
    for file in files:
        say(f"{format_bytes(file.num_bytes):>10}  {file.name}")
    total = format_bytes(sum(file.num_bytes for file in files))
    say(f"{len(files)} files, {total}, to https://huggingface.co/{repo}")
    return [file.name for file in files]
