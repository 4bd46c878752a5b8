"""Run a bad batch again, name where NaN began, and keep it."""
