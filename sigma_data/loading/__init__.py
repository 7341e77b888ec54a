"""Batches of a plan: shards read, images decoded, packs collated, in worker processes."""
