"""`sigma train`: configuration, launch, parallelism, the loop, checkpoints, logs."""
