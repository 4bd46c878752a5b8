"""The version, alone, so that setup.cfg can read it without importing torch."""

__version__ = "0.2.0"
