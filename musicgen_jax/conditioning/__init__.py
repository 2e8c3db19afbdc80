"""Conditions: what the language model is told beside the tokens."""
