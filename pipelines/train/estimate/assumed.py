"""What a run takes before its corpora, or the released model it starts from, are there: packs of images are assumed."""

from __future__ import annotations

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
    `model.vision` shows them, and text is a twentieth. Steps and hours of a run that counts epochs mean nothing here.
    """
    if isinstance(model, Omnigen2Description):
        side = model.geometry.stride
        counts = sample_counts(64, [1024, 1024], 1024, asked=64, patches=[], stride=side)
        return estimate_omnigen2(config, model, EpochCounts(1, 1, counts), ranks=ranks)
    shape = training_config(model if isinstance(model, ModelConfig) else model.config, config)
    budget = config.data.budget
    text = budget // 20
    image = (budget - text) // (3 if shape.vision is None else 5)
    seen = 0 if shape.vision is None else 2 * image
    work = Work(text=text, patch=seen, latent=2 * image, target=image)
    return estimate(config, shape, EpochWork(1, 1, 1, work), ranks=ranks)
