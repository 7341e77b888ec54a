"""Which samples a training step shows: index, mixture, packing, plan."""
