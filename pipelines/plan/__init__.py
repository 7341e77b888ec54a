"""`sigma plan`: an epoch of training before it is run."""
