"""`python -m uncurtail`: the command line."""

from uncurtail.cli import main

main()
