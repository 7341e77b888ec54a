"""Images: decoding, properties, near duplicates, resizing."""
