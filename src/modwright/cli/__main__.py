"""``python -m modwright.cli``."""

from modwright.cli.entry import main

main()
