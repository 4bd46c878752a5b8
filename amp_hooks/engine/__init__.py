"""What the hooks of one run share, and nothing that a user switches on."""
