"""OmniGen2: a diffusion transformer over text states, reference latents and one target latent (arXiv 2506.18871).

Parameters bear their released names, so that weights need no table between file and model.
"""
