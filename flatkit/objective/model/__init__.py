"""The private copy of a model, and how a point stands in it."""
