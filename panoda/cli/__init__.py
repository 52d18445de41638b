"""The command line ``panoda``; ``app`` has its commands, or names the files that have them."""


def main() -> None:
    """Entry point."""
    from panoda.cli.app import main as run

    run()
