"""What every package builds on: errors, progress and small mechanisms that all share."""
