"""`python -m layertap` is the command line."""

from layertap.cli import main

main()
