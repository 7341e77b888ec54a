"""Images and text from a model: the sampler, guidance, the key-value cache."""
