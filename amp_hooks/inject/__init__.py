"""Break a run on purpose, to rehearse what the config makes of it."""
