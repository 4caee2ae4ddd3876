"""Names of tensors in checkpoints of others, one file per architecture."""
