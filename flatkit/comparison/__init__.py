"""Several checkpoints, measured alike and held against each other."""
