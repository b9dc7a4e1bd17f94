"""What commands print: names in it come from files and servers that anybody may have made."""

import typer

from moe4.escape import visible_lines


def echo(text: object = "", *, nl: bool = True, err: bool = False) -> None:
    """Print a text to stdout, or stderr; control characters but newlines and tabs are written out."""
    typer.echo(visible_lines(str(text)), nl=nl, err=err)
