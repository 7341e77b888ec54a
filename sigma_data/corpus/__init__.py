"""A prepared corpus: its manifest, shards, records, checks and data set card."""
