"""Metrics of generated images: each with a name, a version and a written definition.

`registry.make_metrics` gives those that can run here, and for the others the reason why not.
"""
