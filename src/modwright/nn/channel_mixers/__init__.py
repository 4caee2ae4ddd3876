"""Parts that mix channels at each position: one mechanism per file."""
