"""What is known to hurt a training run, found in its config before it starts."""
