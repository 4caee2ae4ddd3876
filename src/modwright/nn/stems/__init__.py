"""Stems: an image (B, C, H, W) becomes a map or tokens, and what makes maps coarser or finer."""
