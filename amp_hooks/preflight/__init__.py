"""Look at the first batch before anything is learned from it."""
