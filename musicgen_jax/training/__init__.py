"""Training of the codec and of the language model."""
