"""``python -m modwright``."""

from modwright.cli.entry import main

main()
