"""`sigma doctor`: what this machine, and the run that is meant for it, lack."""
