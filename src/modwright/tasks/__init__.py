"""Data that models are trained and measured on: deterministic, offline."""
