"""`moe4 card`."""

from pathlib import Path
from typing import Annotated

import typer

from moe4.cli.output import echo, echo_json


def command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the release.")],
    repo: Annotated[
        str | None, typer.Option(help="OWNER/NAME on the hub, for the commands in the card.")
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="OWNER/NAME of the source on the hub.")] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", help="The hub's name of the licence, if not found.")
    ] = None,
    proof: Annotated[
        Path | None, typer.Option(help="Folder of the measured results; OUT/proof if not given.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="Upload release and card to this repository, after a question.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create the repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be written and sent.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without asking.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Write OUT/README.md, the model card, from measured results; upload both if asked to.

    Nothing that was not measured is in it. What you wrote or changed in a card stays when it is written
    again. The hub's token is huggingface_hub's own (HF_TOKEN).
    """
    from moe4.files.durable import write_output
    from moe4.publish.card import CardNames
    from moe4.publish.card_file import card_path, read_card, update_card
    from moe4.publish.proof import read_proof
    from moe4.publish.push import check_repo, list_uploads
    from moe4.publish.push import push as upload
    from moe4.units import format_bytes

    if push is not None:
        repo = check_repo(push)
    found = read_proof(out, proof)
    names = CardNames(repo=repo, base_model=base_model, license_name=license_name)
    card = update_card(found, names, read_card(out))
    if push is not None:
        list_uploads(out)  # what must not be uploaded is refused before anything is written
    if not dry_run:
        write_output(card_path(out), card.text)
    elif not as_json:
        echo(card.text)
    for remark in card.remarks:
        echo(f"moe4: {remark}", err=True)
    result: dict[str, object] = {"card": str(card_path(out)), "written": not dry_run, "uploaded": None}
    if push is not None:
        files = list_uploads(out)
        result["files"] = [file.name for file in files]
        total = format_bytes(sum(file.num_bytes for file in files))
        for file in files:
            echo(f"{format_bytes(file.num_bytes):>10}  {file.name}", err=True)
        echo(f"{len(files)} files, {total}, to https://huggingface.co/{push}", err=True)
        if not dry_run and (yes or typer.confirm("Upload?", err=True)):
            result["uploaded"] = upload(out, push, files, private=private)
    if as_json:
        echo_json(result)
    elif not dry_run:
        echo(result["uploaded"] or result["card"])
