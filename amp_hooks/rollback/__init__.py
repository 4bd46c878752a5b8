"""Snapshots, checkpoints and resume; going back, and the learning rate after it."""
