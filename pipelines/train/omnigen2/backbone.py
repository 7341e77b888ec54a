"""OmniGen2 as a training run uses it: batches to losses, requests to images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image as Pillow
from torch import Tensor

from pipelines.train.backbone import PackLosses
from pipelines.train.config import TrainConfig, ValidationSettings
from pipelines.train.distributed.parallelize import callable_in_parts
from pipelines.train.estimate.flops import Work
from pipelines.train.losses import LossTable
from pipelines.train.omnigen2.batch import Omnigen2Batch, mllm_inputs
from pipelines.train.omnigen2.cost import Counts, Rates, counts_of
from pipelines.train.omnigen2.description import Omnigen2Description
from pipelines.train.omnigen2.model import Omnigen2Model, TrainInputs, TrainOutput, Wanted
from sigma_data.loading.batch import Batch
from sigma_data.sample import Family
from sigma_model.attention import Backend
from sigma_model.omnigen2.attribute_tokens import among_states
from sigma_model.omnigen2.conditioning import IGNORED, Conditioner, MllmInputs, text_states
from sigma_model.omnigen2.flow import training_time
from sigma_model.omnigen2.generate import check_request, generate_images
from sigma_model.omnigen2.loading import LoadedOmnigen2
from sigma_model.omnigen2.pack import Bound
from sigma_model.omnigen2.prompts import VISION
from sigma_model.omnigen2.settings import Omnigen2Generation, Omnigen2Sampling
from sigma_model.sampling.generate import Request
from sigma_model.vae import Vae


class Omnigen2Backbone:
    """A model with the settings of its run. `conditioner` holds the language model, be it trained or not."""

    def __init__(
        self,
        config: TrainConfig,
        description: Omnigen2Description,
        model: Omnigen2Model,
        conditioner: Conditioner,
        vae: Vae,
        rates: Rates,
    ) -> None:
        self._config, self._description = config, description
        self._model, self._conditioner, self._vae, self._rates = model, conditioner, vae, rates
        words = description.tokenizer
        self._filler = int(words.tokenizer.pad_token_id or 0)
        self._attributes = {number: name for name, number in words.attribute_ids.items()}
        self._idle = torch.tensor(words.ids(VISION, [1]))
        patch, merge = (int(getattr(description.processor.processor, name)) for name in ("patch_size", "merge_size"))
        frames = int(description.processor.processor.temporal_patch_size)
        self._idle_patches = torch.zeros(merge**2, 3 * frames * patch**2)
        self._idle_grid = torch.tensor([[1, merge, merge]])

    @property
    def name(self) -> str:
        """The directory's."""
        return self._description.directory.resolve().name

    @property
    def trained(self) -> bool:
        """Whether there were weights to start from."""
        return self._description.trained

    @property
    def model(self) -> Omnigen2Model:
        """The transformer, and the language model where it is trained."""
        return self._model

    @property
    def vae(self) -> Vae:
        """The autoencoder."""
        return self._vae

    def counts(self, batch: Batch) -> Tensor:
        """[2] target tokens, and the weights of answer tokens."""
        pack = _pack(batch)
        stride = self._description.geometry.stride // self._description.vae.downsample
        tokens = sum(noise.shape[-1] * noise.shape[-2] for noise in pack.noise) // stride**2
        device = self._model.device
        weights = self._answer_weights(pack).double().sum()
        return torch.stack((torch.tensor(float(tokens), dtype=torch.float64, device=device), weights.to(device)))

    def losses(self, batch: Batch) -> PackLosses:
        """Both losses of a pack."""
        pack = _pack(batch)
        times = self._times(pack)
        out: TrainOutput = self._model(self._inputs(pack, times), backend=Backend(self._config.model.attention))
        weights = self._answer_weights(pack).to(out.ce)
        features = self._description.config.features
        image = out.squared_errors.sum() / features + out.rest
        text = (out.ce * weights).sum()

        def note(table: LossTable, families: Sequence[Family]) -> None:
            if pack.image_rows:
                counts = torch.tensor([noise.numel() / features for noise in pack.noise], dtype=torch.float64)
                sums = out.squared_errors.detach().double().cpu() / features
                of = [families[row] for row in pack.image_rows]
                named = [self._names(ids) for ids in pack.prompt_ids]
                levels = 1 - torch.stack(times).cpu()
                table.add_sums("image", torch.stack((sums, counts), -1), of, levels=levels, attributes=named)
            if pack.answer_rows:
                lengths = [int((labels[1:] != IGNORED).sum()) for labels in pack.answer_labels]
                sums = torch.stack([part.sum() for part in out.ce.detach().double().cpu().split(lengths)])
                counts = torch.tensor(lengths, dtype=torch.float64)
                table.add_sums("text", torch.stack((sums, counts), -1), [families[row] for row in pack.answer_rows])

        return PackLosses(image, text, note)

    def work(self, batch: Batch) -> tuple[Work, float]:
        """Tokens and operations."""
        pack = _pack(batch)
        counted: Counts = counts_of(pack, self._description)
        return counted.work, self._rates.flops(counted)

    def check(self, request: Request) -> None:
        """Raise SigmaError for an image that cannot be made."""
        check_request(request)

    def images(self, requests: Sequence[Request], settings: ValidationSettings) -> list[Pillow.Image]:
        """Sampled images; a validation's image scale counts as guidance towards references."""
        sampling = Omnigen2Sampling(
            steps=settings.image_steps, text_scale=settings.text_scale, image_scale=settings.image_scale
        )
        geometry = self._description.geometry
        fitted = [
            request if request.size is None else replace(request, size=geometry.target_size(request.size))
            for request in requests
        ]
        mllm = self._conditioner.mllm
        was = mllm.training
        mllm.eval()
        try:
            with callable_in_parts(self._model), callable_in_parts(self._model.transformer):
                loaded = LoadedOmnigen2(self.name, self._model.transformer, self._conditioner, self._vae)
                generation = Omnigen2Generation(
                    sampling, route=self._config.omnigen2.route, group_mask=self._config.model.group_mask
                )
                return generate_images(loaded, fitted, generation)
        finally:
            mllm.train(was)

    def _times(self, pack: Omnigen2Batch) -> list[Tensor]:
        settings = self._config.omnigen2
        stride = self._description.config.patch_size
        return [
            training_time(
                u,
                noise.shape[-1] * noise.shape[-2] // stride**2,
                shift=settings.time_shift,
                static=settings.static_shift,
            )
            for u, noise in zip(pack.u, pack.noise, strict=True)
        ]

    def _inputs(self, pack: Omnigen2Batch, times: Sequence[Tensor]) -> TrainInputs:
        route = self._config.omnigen2.route
        encoded = list(pack.known_latents) or self._vae.encode(pack.images)
        latents = [latent.to(self._model.device) for latent in encoded]
        wanted = [
            Wanted(latents[target], noise, time, tuple(latents[number] for number in references), bound)
            for target, noise, time, references, bound in zip(
                pack.targets, pack.noise, times, pack.references, self._bound(pack), strict=True
            )
        ]
        ids, patches, grids = list(pack.prompt_ids), list(pack.prompt_patches), list(pack.prompt_grids)
        if self._model.mllm is None:
            states = self._states(ids, patches, grids) if ids else []
            return TrainInputs(wanted, states=states)
        with_images = route.shows_images
        answers = None
        if self._config.omnigen2.train_mllm:
            rows = self._mllm_rows(list(pack.answer_ids), list(pack.answer_patches), list(pack.answer_grids), True)
            nothing = torch.full_like(self._idle, IGNORED).to(self._model.device)
            labels = torch.nn.utils.rnn.pad_sequence(
                [*pack.answer_labels, nothing], batch_first=True, padding_value=IGNORED
            )
            answers = rows, labels
        return TrainInputs(
            wanted,
            prompts=self._mllm_rows(ids, patches, grids, with_images),
            keep_image_states=route.keeps_image_states,
            answers=answers,
        )

    @torch.no_grad()
    def _states(self, ids: Sequence[Tensor], patches: Sequence[Tensor], grids: Sequence[Tensor]) -> list[Tensor]:
        inputs = self._padded(ids, patches, grids)
        keep = self._config.omnigen2.route.keeps_image_states
        return text_states(self._conditioner.mllm, inputs, keep_image_states=keep)

    def _mllm_rows(
        self, ids: list[Tensor], patches: list[Tensor], grids: list[Tensor], with_images: bool
    ) -> MllmInputs:
        """Rows for a language model that is trained, with one more behind them: what one rank runs, all run."""
        device = self._model.device
        idle = self._idle.to(device)
        if with_images:
            patches, grids = [*patches, self._idle_patches.to(device)], [*grids, self._idle_grid.to(device)]
        else:
            idle = idle[idle != self._conditioner.image_token]
        return self._padded([*ids, idle], patches, grids)

    def _padded(self, ids: Sequence[Tensor], patches: Sequence[Tensor], grids: Sequence[Tensor]) -> MllmInputs:
        return mllm_inputs(ids, patches, grids, image_token=self._conditioner.image_token, filler=self._filler)

    def _answer_weights(self, pack: Omnigen2Batch) -> Tensor:
        """[C] what each learnt token counts: one, or its answer's length^-1/2."""
        found: list[Tensor] = [torch.zeros(0)]
        for labels in pack.answer_labels:
            learnt = labels[1:] != IGNORED
            if not self._config.loss.reweight_text:
                found.append(torch.ones(int(learnt.sum())))
                continue
            edges = torch.diff(learnt.long(), prepend=learnt.new_zeros(1).long()).clamp(min=0)
            numbers = edges.cumsum(0)[learnt]  # which answer a token belongs to, from 1
            lengths = torch.bincount(numbers)
            found.append(lengths[numbers].float().rsqrt().cpu())
        return torch.cat(found)

    def _bound(self, pack: Omnigen2Batch) -> list[Bound]:
        """Attribute tokens by their places among the states, if there is a group mask."""
        if not self._config.model.group_mask:
            return [()] * len(pack.targets)
        route, image = self._config.omnigen2.route, self._conditioner.image_token
        return [
            among_states(bound, ids.tolist(), image, route) if bound else ()
            for ids, bound in zip(pack.prompt_ids, pack.bound, strict=True)
        ]

    def _names(self, ids: Tensor) -> set[str]:
        return {self._attributes[one] for one in ids.tolist() if one in self._attributes} if self._attributes else set()


def _pack(batch: Batch) -> Omnigen2Batch:
    assert isinstance(batch, Omnigen2Batch)
    return batch
