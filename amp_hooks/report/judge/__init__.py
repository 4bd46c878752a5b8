"""Draw conclusions: what happened, how it ended, why, and what to change."""
