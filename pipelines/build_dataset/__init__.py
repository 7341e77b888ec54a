"""`sigma build-dataset`: scan, plan, write, commit.

Nothing is imported here, for workers import this package and need only their own pass.
"""
