"""The catalogue: one record per paper, with what implements it and what was measured."""

from modwright.papers.catalogue import CATEGORIES, STATUSES, Paper, load_papers, paper, papers

__all__ = ["CATEGORIES", "STATUSES", "Paper", "load_papers", "paper", "papers"]
