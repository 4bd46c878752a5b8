"""Is this run healthy? Loss out of its range, dead gradients, a fallen metric."""
