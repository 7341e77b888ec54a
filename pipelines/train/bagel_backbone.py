"""BAGEL's kind of model as a training run uses it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image as Pillow
from torch import Tensor

from pipelines.train.backbone import PackLosses
from pipelines.train.config import TrainConfig, ValidationSettings
from pipelines.train.distributed.parallelize import callable_in_parts
from pipelines.train.estimate.flops import Work, training_flops, work_of
from pipelines.train.losses import LossTable, LossWeights
from sigma_data.loading.batch import Batch, PackedBatch
from sigma_data.sample import Family
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_model.attention import Backend
from sigma_model.loading import LoadedModel
from sigma_model.model import Output, SigmaModel
from sigma_model.sampling.generate import Request, generate_images, lay_out
from sigma_model.sampling.settings import Guidance, SamplingSettings
from sigma_model.vae import Vae


class BagelBackbone:
    """A loaded model with the settings of its run."""

    def __init__(self, config: TrainConfig, loaded: LoadedModel) -> None:
        self._config, self._loaded = config, loaded

    @property
    def name(self) -> str:
        """The directory's."""
        return self._loaded.name

    @property
    def trained(self) -> bool:
        """Whether there were weights to start from."""
        return self._loaded.trained

    @property
    def model(self) -> SigmaModel:
        """The network."""
        return self._loaded.model

    @property
    def vae(self) -> Vae:
        """The autoencoder."""
        return self._loaded.vae

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self._loaded.tokenizer

    def counts(self, batch: Batch) -> Tensor:
        """[2] target tokens, and the weights of answer tokens."""
        return self._weights(_packed(batch)).sums

    def losses(self, batch: Batch) -> PackLosses:
        """Both losses of a pack."""
        packed = _packed(batch)
        out = forward(self.model, self.vae, packed, self._config)
        weights = self._weights(packed)

        def note(table: LossTable, families: Sequence[Family]) -> None:
            table.add(packed, out, families, self.tokenizer.attribute_ids)

        return PackLosses((out.mse.mean(-1) * weights.image).sum(), (out.ce * weights.text).sum(), note)

    def work(self, batch: Batch) -> tuple[Work, float]:
        """Tokens and operations."""
        config = self._config
        work = work_of(_packed(batch), group_mask=config.model.group_mask)
        flops, _ = training_flops(
            self.model.config, work, frozen=config.freeze, lora=config.lora, checkpointing=config.parallel.checkpointing
        )
        return work, flops

    def check(self, request: Request) -> None:
        """Raise SigmaError for what cannot be laid out."""
        lay_out(request, self._loaded.tokenizer, self._loaded.geometry, answer=True)

    def images(self, requests: Sequence[Request], settings: ValidationSettings) -> list[Pillow.Image]:
        """Sampled images."""
        sampling = SamplingSettings(
            steps=settings.image_steps,
            guidance=Guidance(text=settings.text_scale, image=settings.image_scale),
            group_mask=self._config.model.group_mask,
        )
        with callable_in_parts(self.model):
            return generate_images(self._loaded, requests, sampling)

    def _weights(self, batch: PackedBatch) -> LossWeights:
        return LossWeights.of(batch, reweight_text=self._config.loss.reweight_text)


def forward(model: SigmaModel, vae: Vae, batch: PackedBatch, config: TrainConfig) -> Output:
    """Encode a batch's images, each by itself, and run the model."""
    encoded: Sequence[Tensor] = batch.known_latents or vae.encode(batch.images)
    latents = model.clean_latents(batch, encoded)
    output: Output = model(
        batch,
        latents,
        timestep_shift=config.loss.timestep_shift,
        group_mask=config.model.group_mask,
        backend=Backend(config.model.attention),
    )
    return output


def _packed(batch: Batch) -> PackedBatch:
    assert isinstance(batch, PackedBatch)
    return batch
