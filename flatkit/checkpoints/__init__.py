"""Checkpoints: what a training run leaves, and what an analysis starts from."""

from flatkit.checkpoints.native import FORMAT, Checkpoint, load, save

__all__ = ["FORMAT", "Checkpoint", "load", "save"]
