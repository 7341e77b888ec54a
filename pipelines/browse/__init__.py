"""`sigma browse`: a corpus, a training run or an evaluation in a browser, read-only."""
