"""`sigma inspect`: a corpus as a table, a sample in words and as an image."""
