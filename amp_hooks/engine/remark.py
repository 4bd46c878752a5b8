"""A message for the user that is no warning."""


class Remark(str):
    """What is as it should be and still to be known; logged as information."""
