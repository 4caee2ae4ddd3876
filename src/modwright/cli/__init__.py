"""The command line: argument parsing and printing only."""

from modwright.cli.entry import main

__all__ = ["main"]
