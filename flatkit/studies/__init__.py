"""Trainings of several optimizers over seeds, measured and held against each other."""
