"""modwright: one workbench for the anatomy of Transformers."""

__version__ = "0.1.0"
