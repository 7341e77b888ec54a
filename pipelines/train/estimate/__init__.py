"""What a run will take: FLOPs, memory, a dry run."""
