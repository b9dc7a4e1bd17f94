"""`python -m moe4`, which is `moe4`; torchrun starts it so."""

from moe4.cli.main import main

main()
