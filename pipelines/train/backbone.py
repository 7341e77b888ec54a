"""What a training run asks of a kind of model: the one seam between BAGEL's and OmniGen2's.

Losses are sums with their counts, never means: what is averaged is known only to whoever sees all ranks and packs of a
step. docs/extending.md says what else a kind of model brings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image as Pillow
from torch import Tensor, nn

from pipelines.train.config import ValidationSettings
from pipelines.train.estimate.flops import Work
from pipelines.train.losses import LossTable
from sigma_data.loading.batch import Batch
from sigma_data.sample import Family
from sigma_model.sampling.generate import Request
from sigma_model.vae import Vae


@dataclass(frozen=True)
class PackLosses:
    """The losses of a pack, summed over its tokens and with a gradient; what is averaged is not known here.

    `image`: of each target token, the mean squared error of its numbers. `text`: of each answer token, its weighted
    cross entropy. `note` counts both into a table, by family, noise level and attribute token.
    """

    image: Tensor
    text: Tensor
    note: Callable[[LossTable, Sequence[Family]], None]


class Backbone(Protocol):
    """A model with all that training does with it. Its batches are those that its data set makes."""

    @property
    def name(self) -> str:
        """The directory's, or the preset's."""

    @property
    def trained(self) -> bool:
        """Whether there were weights to start from; otherwise they were drawn."""

    @property
    def model(self) -> nn.Module:
        """All that is trained and sharded, under the names that checkpoints have."""

    @property
    def vae(self) -> Vae:
        """The frozen autoencoder."""

    def counts(self, batch: Batch) -> Tensor:
        """[2] float64: what the sums of `losses` are divided by, target tokens and answers' weights."""

    def losses(self, batch: Batch) -> PackLosses:
        """One forward pass, on the model's device.

        Every rank must come to this with as many batches, and every batch, whatever it holds, runs all parts that are
        sharded: what one rank reduces, all reduce.
        """

    def work(self, batch: Batch) -> tuple[Work, float]:
        """Tokens of a batch, and the operations of its forward and backward pass."""

    def check(self, request: Request) -> None:
        """Raise SigmaError for a request whose image cannot be made."""

    def images(self, requests: Sequence[Request], settings: ValidationSettings) -> list[Pillow.Image]:
        """An image for each request; every rank must ask for the same. Raises SigmaError."""
