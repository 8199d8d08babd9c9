"""File formats: each is opened by what is in it, and nothing in it is run."""
