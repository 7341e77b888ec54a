"""`sigma eval`: generate a benchmark's pictures, score them, report."""
