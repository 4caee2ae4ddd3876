"""One token mixer per file: the naive truth and the fast path side by side."""
