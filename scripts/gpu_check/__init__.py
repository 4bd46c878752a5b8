"""What can only be seen on a machine with a GPU; scripts/gpu_check.sh runs it."""
