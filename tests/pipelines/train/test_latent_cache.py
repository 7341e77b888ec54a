"""Pictures that are met again are encoded once, and nothing that is learnt shows it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ranks
from support.sequences import case, generator, one_thread, pack, tiny_config  # noqa: F401
from support.training_runs import lines, run, same, saved, settings_of
from torch import Tensor

from pipelines.train.config import TrainConfig
from pipelines.train.latent_cache import LatentCache
from pipelines.train.trainer import train
from sigma_data.errors import TrainError
from sigma_data.loading.batch import ImageKey
from sigma_data.loading.loader import PackDataset
from sigma_data.loading.workers import Place
from sigma_data.planning.plan import PackRequest
from sigma_model.vae import Vae


class Watched:
    """An autoencoder with random weights that counts what it encodes."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.real = Vae(tiny_config().vae).to(dtype)
        self.count = 0

    def encode(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        self.count += len(pictures)
        return self.real.encode(pictures)


def picture(number: int, width: int = 8, height: int = 12) -> Tensor:
    """[3, height, width] bytes that lie [height, width, 3], as the loader reads them."""
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator("picture", number), dtype=torch.uint8)
    return pixels.permute(2, 0, 1)


def key(number: int, width: int = 8, height: int = 12, *, row: int = 0) -> ImageKey:
    return ImageKey(0, row, number, (width, height))


def check(cache: LatentCache, vae: Watched, images: Sequence[int] | dict[ImageKey, Tensor]) -> None:
    """What comes back is to the bit what the autoencoder gives."""
    keys = [*images] if isinstance(images, dict) else [key(number) for number in images]
    pictures = [*images.values()] if isinstance(images, dict) else [picture(number) for number in images]
    found = cache.encoded(replace(pack([]), images=tuple(pictures), image_keys=tuple(keys)))
    assert found.images == ()
    assert len(found.known_latents) == len(pictures)
    for latent, expected in zip(found.known_latents, vae.real.encode(pictures), strict=True):
        assert latent.dtype == expected.dtype
        assert torch.equal(latent, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_picture_is_encoded_once_in_whatever_company_it_comes_back(dtype: torch.dtype) -> None:
    vae: Any = Watched(dtype)
    cache = LatentCache(vae, 2**20)
    check(cache, vae, [0, 1, 0])
    assert vae.count == 2
    check(cache, vae, [2, 1, 0])
    assert vae.count == 3
    check(cache, vae, [1, 2])
    assert vae.count == 3


def test_an_image_at_another_size_is_another() -> None:
    vae: Any = Watched()
    cache = LatentCache(vae, 2**20)
    check(cache, vae, {key(0): picture(0), key(0, 12, 8): picture(0, 12, 8), key(0, row=1): picture(0)})
    assert vae.count == 3


def test_a_full_cache_keeps_what_it_has_and_what_finds_no_room_is_encoded_each_time() -> None:
    vae: Any = Watched()
    size = vae.real.encode([picture(0)])[0].nbytes
    cache = LatentCache(vae, 3 * size - 1)  # two, and nearly a third
    for _ in range(2):
        check(cache, vae, range(4))
    assert vae.count == 4 + 2
    check(cache, vae, [0, 1])
    assert vae.count == 6
    small = {key(9, 4, 4): picture(9, 4, 4)}  # what is left has room for it
    for _ in range(2):
        check(cache, vae, small)
    assert vae.count == 7


def test_a_batch_without_pictures_stays_as_it_is() -> None:
    vae: Any = Watched()
    for one in (pack([case("paint the old man", pictures=1)]), pack([])):
        assert LatentCache(vae, 2**20).encoded(one) is one
    assert vae.count == 0


# Whole runs -----------------------------------------------------------------------------------------


def settings(out: Path, corpus: Path, room: int, **changes: Any) -> dict[str, Any]:
    """Two epochs."""
    changes = {"steps": None, "epochs": 2, "accumulate": 3, **changes}
    return settings_of(out, corpus, loader={"workers": 0, "latent_cache": room}, **changes)


@pytest.mark.slow
def test_two_epochs_learn_the_same_to_the_bit_and_encode_each_picture_once(
    tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Tensor] = []
    met: list[ImageKey] = []
    encode, load = Vae.encode, PackDataset.load

    def counting(self: Vae, pictures: Sequence[Tensor]) -> list[Tensor]:
        encoded.extend(pictures)
        return encode(self, pictures)

    def watching(self: PackDataset, ticket: PackRequest, place: Place) -> Any:
        loaded = load(self, ticket, place)
        met.extend(loaded.batch.image_keys)
        return loaded

    monkeypatch.setattr(Vae, "encode", counting)
    monkeypatch.setattr(PackDataset, "load", watching)
    run(settings(tmp_path / "without", training_corpus, 0))
    shown = len(met)
    assert len(encoded) == shown
    different = set(met)
    assert len(different) < 0.7 * shown, "the second epoch shows what the first one did, but for what is dropped"
    for name, room in (("all", 2**30), ("some", 40_000)):
        encoded.clear()
        run(settings(tmp_path / name, training_corpus, room))
        assert len(encoded) == len(different) if name == "all" else len(different) < len(encoded) < shown
        assert same(saved(tmp_path / name), saved(tmp_path / "without"))
        assert lines(tmp_path / name) == lines(tmp_path / "without")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_on_a_cpu_workers_encode_beside_the_steps_to_the_same_bits(
    tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    run(settings(tmp_path / "without", training_corpus, 0, epochs=1))

    def refused(self: Vae, pictures: Sequence[Tensor]) -> list[Tensor]:
        assert os.getpid() != training, "encoded by the training process"
        return encode(self, pictures)

    training, encode = os.getpid(), Vae.encode
    monkeypatch.setattr(Vae, "encode", refused)
    loader = {"workers": 2, "start_method": method, "latent_cache": 2**30}
    run(settings(tmp_path / "beside", training_corpus, 0, epochs=1) | {"loader": loader})
    assert same(saved(tmp_path / "beside"), saved(tmp_path / "without"))


@pytest.mark.slow
def test_two_ranks_with_a_cache_each_learn_the_same_to_the_bit(tmp_path: Path, training_corpus: Path) -> None:
    for name, room in (("without", 0), ("with", 2**30)):
        ranks.run(run, 2, settings(tmp_path / name, training_corpus, room), timeout_s=120)
    assert same(saved(tmp_path / "with"), saved(tmp_path / "without"))
    assert lines(tmp_path / "with") == lines(tmp_path / "without")


@pytest.mark.slow
def test_a_run_computes_with_the_threads_asked_for_and_leaves_the_process_as_it_was_whatever_it_came_to(
    tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    before = torch.get_num_threads()

    def broken(*_: Any, **__: Any) -> None:
        found.append(torch.get_num_threads())
        raise TrainError("a fault")

    monkeypatch.setattr("pipelines.train.bagel_backbone.forward", broken)
    asked = settings_of(tmp_path, training_corpus, parallel={"threads": before + 1})
    with pytest.raises(TrainError, match="a fault"):
        train(TrainConfig.model_validate(asked))
    assert found == [before + 1]
    assert torch.get_num_threads() == before
