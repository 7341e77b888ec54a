"""`sigma download`: models and data sets from the hub, only the files that are needed, checked by their hashes."""
