"""Official PyTorch checkpoints to musicgen_jax folders, without torch."""
