"""The version of trtq."""

__version__ = "0.1.0"
