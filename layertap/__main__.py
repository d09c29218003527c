"""`python -m layertap` is the command line."""

from layertap.cli.main import main

main()
