"""The training loop, its state, checkpoints and numerical precision."""
