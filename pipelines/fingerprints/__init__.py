"""`sigma fingerprints`: which images a corpus must not hold."""
