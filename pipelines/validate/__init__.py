"""`sigma validate`: a corpus checked against its corpus.json."""
