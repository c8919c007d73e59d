"""`python -m vaeserve`: the command line."""

from vaeserve.cli import main

main()
