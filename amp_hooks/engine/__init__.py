"""What hooks, checks and report share, and nothing that a user switches on."""
