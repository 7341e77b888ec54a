"""The presets: which have weights, and that those of the tiny base read their references."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from support.places import GOLDEN
from support.sequences import one_thread  # noqa: F401

from sigma_data.images.decode import load as load_image
from sigma_data.sample import Family
from sigma_data.synthetic import draw_sample
from sigma_model.api import load
from sigma_model.config import VaeConfig, preset, preset_directory
from sigma_model.model_files import weight_files
from sigma_model.omnigen2.conditioning import empty_mllm
from sigma_model.omnigen2.config import CONFIG_FILE, TransformerConfig
from sigma_model.omnigen2.files import MLLM, RELEASED, TRANSFORMER, preset_path
from sigma_model.omnigen2.images import output_sizes
from sigma_model.omnigen2.loading import LoadedOmnigen2
from sigma_model.sampling.settings import Guidance, SamplingSettings

ONE_STEP = SamplingSettings(steps=2, guidance=Guidance(text=1.0, image=1.0))


def test_the_tiny_base_alone_has_weights_and_they_are_small() -> None:
    (weights,) = weight_files(preset_directory("tiny-base"))
    assert weights.stat().st_size <= 5_000_000
    assert not weight_files(preset_directory("tiny"))
    assert not weight_files(preset_directory("bagel-7b-mot"))


def test_the_tiny_base_takes_what_the_tiny_preset_takes() -> None:
    base, tiny = preset("tiny-base"), preset("tiny")
    assert base.vision is None
    assert (base.vae, base.latent, base.attribute_rows) == (tiny.vae, tiny.latent, tiny.attribute_rows)
    for name in ("ae.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (preset_directory("tiny-base") / name).read_bytes() == (preset_directory("tiny") / name).read_bytes()


def test_the_released_omnigen2_is_described_by_its_sizes() -> None:
    mllm = empty_mllm(preset_path(RELEASED) / MLLM)
    assert sum(one.numel() for one in mllm.parameters()) == 3_754_622_976
    released = GOLDEN.with_name("golden_omnigen2") / "released_keys.json"
    found = TransformerConfig.from_values(json.loads(released.read_text())["config"], released)
    assert found == TransformerConfig(), "its defaults are taken for the released sizes"


def test_an_omnigen2_makes_the_size_that_it_states_and_the_released_one_1024(tmp_path: Path) -> None:
    def made_size(config: TransformerConfig, vae: VaeConfig, wanted: tuple[int, int] | None = None) -> tuple[int, int]:
        network: Any = SimpleNamespace(config=config)
        autoencoder: Any = SimpleNamespace(config=vae)
        loaded = LoadedOmnigen2("x", network, cast(Any, None), autoencoder)
        return output_sizes(wanted, [], rule=loaded.rule)[0]

    assert made_size(TransformerConfig(), VaeConfig()) == (1024, 1024)
    tiny = TransformerConfig.from_file(preset_path("omnigen2-tiny") / TRANSFORMER / CONFIG_FILE)
    assert made_size(tiny, preset("tiny").vae) == (64, 64)
    assert made_size(tiny, preset("tiny").vae, (96, 32)) == (96, 32), "where it is asked for"
    tiny.write(tmp_path)
    assert TransformerConfig.from_file(tmp_path / CONFIG_FILE) == tiny, "an export makes the same size"
    TransformerConfig().write(tmp_path)
    assert "sample_size" not in (tmp_path / CONFIG_FILE).read_text(), "the release has no such key"


@pytest.mark.slow
def test_the_tiny_base_gives_a_reference_back_where_random_weights_make_noise() -> None:
    family = Family.COMPOSITIONAL
    images = [draw_sample(seed=0, size=64, format="png", family=family, index=n).images[-1] for n in range(3)]
    errors = []
    for name in ("tiny", "tiny-base"):
        model = load(name)
        assert model.parts.trained is (name == "tiny-base")
        made = [model.generate("copy <image_1>", [image], settings=ONE_STEP) for image in images]
        wanted = [np.asarray(load_image(image), dtype=float) for image in images]
        errors.append(
            np.mean([np.abs(np.asarray(one) - answer).mean() for one, answer in zip(made, wanted, strict=True)])
        )
    noise, base = errors
    assert base < 12 < 40 < noise
