"""Samples, instructions, pictures and corpora. Imports no model code."""
