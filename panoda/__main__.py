"""``python -m panoda``: the command line."""

from panoda.cli import main

main()
