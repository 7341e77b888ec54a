"""A sample as the model's sequence: its layout in segments, and the tokenizer."""
