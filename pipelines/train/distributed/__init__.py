"""Training over several processes: the process group, sharding, what ranks must agree on."""
