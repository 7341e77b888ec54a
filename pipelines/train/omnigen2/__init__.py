"""Training OmniGen2's transformer: weights sharded over ranks, and optimiser steps that mean the same on any number."""
