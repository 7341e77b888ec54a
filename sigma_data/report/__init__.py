"""The HTML report of a corpus; a sample as text and as an image."""
