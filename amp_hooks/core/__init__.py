"""The part that knows no framework but torch: pure functions and dataclasses."""
