"""`sigma app`: composing images in a browser."""
