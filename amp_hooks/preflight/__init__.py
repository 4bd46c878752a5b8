"""The first batch before it is trained on: run it, judge it, act on it."""
