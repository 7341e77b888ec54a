"""`sigma generate`: one image or answer from a prompt and references."""
