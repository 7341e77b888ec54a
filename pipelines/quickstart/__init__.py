"""The whole toolkit once, on a laptop."""
