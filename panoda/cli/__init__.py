"""The command line ``panoda``."""
