"""Private names of other libraries: every one that is read, behind a function that says why.

``torch`` needs torch alone; ``transformers`` and ``tools`` import their libraries when asked.
"""
