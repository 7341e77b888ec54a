"""Corpora described by a field map, a YAML file that says where a row has its images, words, scores and family.

`schema` is the file, `reader` the source, `shapes` turns a row into a draft of a sample, `images` finds its images.
"""
