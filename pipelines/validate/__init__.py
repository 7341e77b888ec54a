"""`sigma validate`: a corpus against its commit."""
