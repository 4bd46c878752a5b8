"""Read a run's files into plain data; nothing in them is executed."""
