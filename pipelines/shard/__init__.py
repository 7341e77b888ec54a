"""`sigma shard`: a corpus selected, sharded anew or exported."""
