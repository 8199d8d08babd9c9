"""Figures of results and surfaces, and how they become files."""
