"""Train the same model twice, once with the trick. See what the meter says."""

__version__ = "0.1.0"
