"""Weights on disk and back; names of models to their folders."""
