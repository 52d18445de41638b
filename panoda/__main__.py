"""``python -m panoda``: the command line."""

from panoda.cli.main import main

main()
