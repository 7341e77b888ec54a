"""What a run takes before its corpora, or the released model it starts from, are there: packs of images are assumed."""

from __future__ import annotations

import math

from pipelines.train.config import TrainConfig
from pipelines.train.estimate.flops import Work
from pipelines.train.estimate.memory import EpochWork, estimate
from pipelines.train.estimate.run_estimate import Estimate
from pipelines.train.omnigen2.cost import sample_counts
from pipelines.train.omnigen2.description import Omnigen2Description
from pipelines.train.omnigen2.estimate import EpochCounts
from pipelines.train.omnigen2.estimate import estimate as estimate_omnigen2
from pipelines.train.start_description import Description, training_config
from sigma_model.config import ModelConfig


def assumed_estimate(config: TrainConfig, model: Description | ModelConfig, *, ranks: int) -> Estimate:
    """Memory and checkpoints of a run, from its settings and the model's shape alone.

    Full packs are assumed in which every target has two references of its size, each seen by the vision encoder where
    `model.vision` (OmniGen2: `omnigen2.route`) shows them, and text is a twentieth (OmniGen2: 64 tokens a sample).
    Steps and hours of a run that counts epochs mean nothing here.
    """
    if isinstance(model, Omnigen2Description):
        shapes, latents, text = model.geometry, 1024, 64  # tokens of an image of 32 x 32, and of an instruction
        side = math.isqrt(latents) * shapes.stride
        seen = round(side / shapes.mllm.factor) ** 2 if shapes.route.shows_images else 0
        counts = sample_counts(
            text + (2 * seen if shapes.route.keeps_image_states else 0),
            [latents, latents] if shapes.route.has_latents else [],
            latents,
            asked=text + 2 * seen,
            patches=[4 * seen, 4 * seen] if seen else [],
            stride=shapes.stride,
        )
        return estimate_omnigen2(config, model, EpochCounts(1, 1, counts), ranks=ranks)
    shape = training_config(model if isinstance(model, ModelConfig) else model.config, config)
    budget = config.data.budget
    text = budget // 20
    image = (budget - text) // (3 if shape.vision is None else 5)
    seen = 0 if shape.vision is None else 2 * image
    work = Work(text=text, patch=seen, latent=2 * image, target=image)
    return estimate(config, shape, EpochWork(1, 1, 1, work), ranks=ranks)
