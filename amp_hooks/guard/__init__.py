"""Let a step through, or undo the iteration; the policy of the loss scale."""
