"""SigmaModel: a packed batch -> losses of images and texts.

The whole forward pass reads top-down: embed what each token shows, run the backbone, read velocities
off the targets' latents and logits off the answers' tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sigma_data.loading.batch import PackedBatch, Widths
from sigma_data.sequence.layout import Geometry
from sigma_model.answer_loss import answer_loss
from sigma_model.attention import Backend, attention_for
from sigma_model.backbone import Backbone, same_for_all
from sigma_model.config import ModelConfig
from sigma_model.embed import TimeEmbedder, shifted_time, sincos_table
from sigma_model.vae import to_tokens
from sigma_model.vision import Connector, VisionEncoder


@dataclass(frozen=True)
class Output:
    """What a forward pass gives; nothing is averaged, for averages are over all ranks.

    `mse` [M_t, F]: squared error of the velocity a target token and feature. `ce` [C]: cross entropy
    an answer token. `level` [I_t]: noise level of each target. `velocity` [M_t, F]. `und` [C, D] and
    `gen` [M_t, D] are the final hidden states of what carries a loss; of all tokens, [n_und, D] and
    [n_gen, D], where `hidden` was asked for.
    """

    mse: Tensor
    ce: Tensor
    level: Tensor
    velocity: Tensor
    und: Tensor
    gen: Tensor


class SigmaModel(nn.Module):
    """BAGEL's network with SIGMA's group mask and, as an option, its attribute projection."""

    latent_positions: Tensor
    patch_positions: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.freeze_und = False
        width = config.language.hidden_size
        self.backbone = Backbone(config.language)
        self.lm_head = nn.Linear(width, config.language.vocab_size, bias=False)
        self.latent_in = nn.Linear(config.latent.features, width)
        self.latent_out = nn.Linear(width, config.latent.features)
        self.time_embedder = TimeEmbedder(width)
        self.register_buffer("latent_positions", sincos_table(config.latent.grid, width))
        self.vision: VisionEncoder | None = None
        self.connector: Connector | None = None
        if config.vision is not None:
            self.vision = VisionEncoder(config.vision)
            self.connector = Connector(config.vision.hidden_size, width)
            self.register_buffer("patch_positions", sincos_table(config.vision.grid, width))
        self.attribute_projection: nn.Linear | None = None
        if config.attribute_projection:
            self.attribute_projection = nn.Linear(width, width, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type, in which the layers compute."""
        return self.lm_head.weight.dtype

    def freeze(self, *, und: bool = False, vit: bool = False, llm: bool = False) -> None:
        """Choose what does not learn; a call replaces the choice before it.

        `und`: the understanding expert, with the embeddings and the vision encoder that feed it; no
        gradient flows into or through its hidden states. `vit`: the vision encoder. `llm`: both
        experts, embeddings and the text head.
        """
        self.requires_grad_(True)
        self.freeze_und = und
        frozen: list[nn.Module | None] = []
        if und:
            frozen += (layer.get_submodule("und") for layer in self.backbone.layers)
            frozen += [self.backbone.embed, self.backbone.norm_und, self.vision, self.connector]
        if vit:
            frozen.append(self.vision)
        if llm:
            frozen += [self.backbone, self.lm_head]
        for module in frozen:
            if module is not None:
                module.requires_grad_(False)

    def forward(
        self,
        batch: PackedBatch,
        latents: Tensor,
        *,
        timestep_shift: float = 1.0,
        group_mask: bool = True,
        backend: Backend = Backend.AUTO,
        hidden: bool = False,
    ) -> Output:
        """One training pass. `latents` [M, F]: the clean latents of `batch`, from `clean_latents`.

        The last layer works on the tokens that carry a loss alone, unless all `hidden` states are wanted.
        """
        latents = latents.float()
        level = shifted_time(batch.u, timestep_shift)
        clean = latents[batch.target_slots]
        token_level = self._of_targets(batch, level)[batch.latent_image[batch.target_slots]][:, None]
        noise = batch.noise.float()
        noised = latents.index_copy(0, batch.target_slots, (1 - token_level) * clean + token_level * noise)
        und, gen = self.embed(batch, noised, level)
        attend = attention_for(batch, group_mask=group_mask, backend=backend)
        rows = batch.answer_slots, batch.target_slots
        und, gen = self.backbone(
            und,
            gen,
            batch.positions,
            same_for_all(attend),
            freeze_und=self.freeze_und,
            rows=None if hidden else rows,
        )
        answers, targets = (und[rows[0]], gen[rows[1]]) if hidden else (und, gen)
        velocity = self.latent_out(targets).float()
        return Output(
            mse=(velocity - (noise - clean)) ** 2,
            ce=answer_loss(self.lm_head, answers, batch.labels),
            level=level,
            velocity=velocity,
            und=und,
            gen=gen,
        )

    def embed(self, batch: PackedBatch, latents: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the first layer: [n_und, D], [n_gen, D].

        `latents` [M, F] with the targets noised to `level` [I_t].
        """
        hints = self._hints(batch)
        words = self.backbone.embed_tokens(batch.text_ids)
        und = words.new_zeros(batch.n_und, words.shape[-1]).index_copy(0, batch.text_slots, words)
        # With a vision encoder also where there are no patches: every rank must run, and reduce, the same parts.
        if self.vision is not None or batch.patch_grids:
            patches = self.embed_patches(batch.patches, batch.patch_places, batch.patch_grids)
            if hints is not None:
                patches = patches + _spread(hints[len(batch.latent_grids) :], batch.patch_grids)
            und = und.index_copy(0, batch.patch_slots, patches)
        times = self.time_embedder(self._of_targets(batch, level))
        gen = self.embed_latents(latents, batch.latent_places) + times[batch.latent_image]
        if hints is not None:
            gen = gen + _spread(hints[: len(batch.latent_grids)], batch.latent_grids)
        return und, gen

    def embed_latents(self, latents: Tensor, places: Tensor) -> Tensor:
        """Latent tokens [M, F] at places [M] of the position table -> [M, D], without the noise level."""
        out: Tensor = self.latent_in(latents.to(self.latent_in.weight.dtype))
        return out + self.latent_positions[places].to(out.dtype)

    def embed_patches(self, patches: Tensor, places: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """ViT patches [P, patch * patch * 3] at places [P] of the position tables -> [P, D]."""
        assert self.vision is not None, "these weights have no vision encoder: lay out without ViT segments"
        assert self.connector is not None
        out: Tensor = self.connector(self.vision(patches, places, grids))
        return out + self.patch_positions[places].to(out.dtype)

    def clean_latents(self, batch: PackedBatch, encoded: Sequence[Tensor]) -> Tensor:
        """[M, F] of the batch's latent tokens from its encoded images, each [z, h, w]."""
        patch, device = self.config.latent.patch_size, batch.positions.device
        if not batch.latent_sources:
            return torch.zeros(0, self.config.latent.features, device=device)
        return torch.cat([to_tokens(encoded[index], patch) for index in batch.latent_sources]).to(device)

    def _of_targets(self, batch: PackedBatch, level: Tensor) -> Tensor:
        """[I_l] noise level of every latent image; a clean one's is 0."""
        levels = torch.zeros(len(batch.latent_grids), dtype=level.dtype, device=level.device)
        return levels.index_copy(0, batch.target_images, level)

    def _hints(self, batch: PackedBatch) -> Tensor | None:
        """[I_l + I_p, D]: W tau, averaged over the attribute tokens that speak of an image."""
        if self.attribute_projection is None:
            return None
        images = len(batch.latent_grids) + len(batch.patch_grids)
        tau = self.attribute_projection(self.backbone.embed_tokens(batch.hint_ids))
        total = torch.zeros(images, tau.shape[-1], dtype=tau.dtype, device=tau.device)
        total = total.index_add(0, batch.hint_images, tau)
        counts = total.new_zeros(images).index_add(0, batch.hint_images, total.new_ones(len(tau))).clamp(min=1)
        return total / counts[:, None]


def geometry(config: ModelConfig) -> Geometry:
    """How this model lays out images."""
    return Geometry(
        vae=config.vae_rule,
        vit=config.vit_rule if config.vision is not None else None,
        vqa=config.vqa_rule if config.vision is not None else None,
        latent_grid=config.latent.grid,
        patch_grid=config.vision.grid if config.vision is not None else 0,
        max_tokens=config.language.max_position_embeddings,
    )


def widths(config: ModelConfig) -> Widths:
    """What `collate` must know of this model."""
    vision = config.vision
    return Widths(
        latent=config.latent.features,
        patch=vision.patch_size**2 * 3 if vision is not None else 0,
        latent_grid=config.latent.grid,
        patch_grid=vision.grid if vision is not None else 0,
    )


def _spread(rows: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
    """A row an image -> the same row for each of its tokens."""
    counts = torch.tensor([r * c for r, c in grids], dtype=torch.long, device=rows.device)
    return rows.repeat_interleave(counts, 0, output_size=sum(r * c for r, c in grids))
