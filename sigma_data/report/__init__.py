"""The report of a corpus, and a sample in words and as an image."""
