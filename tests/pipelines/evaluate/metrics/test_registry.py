"""Which metrics there are, which can run here, and what is said of the others."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support.image_files import encoded
from support.tiny_backbones import drawn, made

from pipelines.evaluate.item import Result
from pipelines.evaluate.metrics.base import Metric, SetMetric
from pipelines.evaluate.metrics.registry import NAMES, backbones, make_metrics
from sigma_data.errors import ConfigError

BACKBONE = {
    "clip": "CLIP", "dino": "DINO", "depth": "depth RMSE", "gram": "style Gram", "aesthetic": "AES",
    "dreamsim": "DreamSim", "lpips": "LPIPS", "inception": "FID",
}  # fmt: skip
"""A metric that needs it, for every backbone."""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache of the hub, and neither torchvision nor what needs it."""
    import huggingface_hub._snapshot_download
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)


def test_every_metric_has_a_unique_name_a_version_a_direction_a_scale_and_a_definition(models) -> None:
    made_, skipped = make_metrics(None, models, "cpu", 4)
    assert sorted([one.name for one in made_] + list(skipped)) == sorted(NAMES)
    for one in made_:
        assert one.version and one.scale and one.better in ("up", "down")
        assert len(one.definition) > 40 and one.definition.endswith(".")
    defined = {one.name: one.definition for one in made_}
    for key in ("clip", "dino", "depth", "gram", "aesthetic"):
        assert models[key] in defined[BACKBONE[key]]
    for name, definition in defined.items():
        named = [key for key, value in models.items() if value in definition]
        assert [models[key] for key in named] == [
            value for value in backbones(name, models) if value in models.values()
        ]


def test_metrics_come_in_the_order_asked_for_and_once(models) -> None:
    made_, _ = make_metrics(["SSIM", "CLIP", "SSIM"], models, "cpu", 4)
    assert [one.name for one in made_] == ["SSIM", "CLIP"]


def test_what_cannot_be_had_is_skipped_with_the_reason(offline) -> None:
    made_, skipped = make_metrics(None, {}, "cpu", 4)
    assert [one.name for one in made_] == ["F1", "PSNR", "SSIM"]
    assert list(skipped) == [name for name in NAMES if name not in ("F1", "PSNR", "SSIM")]
    assert "openai/clip-vit-large-patch14: neither in the cache nor" in skipped["CLIP-ES"]
    assert "facebook/dinov2-large" in skipped["DINO"]
    assert "pip install dreamsim" in skipped["DreamSim"]
    assert "pip install 'sigma-multimodal[eval]' torch-fidelity" in skipped["FID"]
    assert all("\n" not in reason for reason in skipped.values())


def test_without_torchmetrics_only_its_metrics_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    made_, skipped = make_metrics(["PSNR", "F1", "SSIM"], {}, "cpu", 4)
    assert [one.name for one in made_] == ["F1"]
    assert all("pip install 'sigma-multimodal[eval]'" in skipped[name] for name in ("PSNR", "SSIM"))


@pytest.mark.parametrize("key", BACKBONE)
@pytest.mark.parametrize("wrong", ["/no/such/place", "./nowhere", "~/no/such/place", "a/b/c", "", "here/nowhere"])
def test_a_wrong_path_is_the_users_mistake_for_every_backbone(
    models, key: str, wrong: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"no such directory for the model '{key}'"):
        make_metrics([BACKBONE[key]], models | {key: wrong}, "cpu", 4)


def test_what_can_be_no_hub_name_is_the_users_mistake() -> None:
    with pytest.raises(ConfigError, match="neither a directory nor a hub name"):
        make_metrics(["CLIP"], {"clip": "what is this"}, "cpu", 4)


@pytest.mark.parametrize(("key", "name"), [("lpips", "LPIPS"), ("inception", "FID")])
def test_a_packages_model_that_does_not_exist_is_the_users_mistake(key: str, name: str) -> None:
    with pytest.raises(ConfigError, match="resnet"):
        make_metrics([name], {key: "resnet"}, "cpu", 4)


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="CLIP-X: no such metric; there are CLIP, CLIP-I, DINO"):
        make_metrics(["CLIP", "CLIP-X"], {}, "cpu", 4)
    with pytest.raises(ConfigError, match="klip: no such model of the metrics; there are clip, dino"):
        make_metrics(["PSNR"], {"klip": "openai/clip"}, "cpu", 4)


@pytest.mark.parametrize("key", ["clip", "dino", "depth", "gram"])
def test_a_checkpoint_that_lacks_a_weight_is_refused_not_filled_with_noise(models, key: str, tmp_path: Path) -> None:
    place = tmp_path / key
    shutil.copytree(models[key], place)
    weights = load_file(place / "model.safetensors")
    gone = sorted(weights)[-1]
    weights.pop(gone)
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="1 weights are missing"):
        make_metrics([BACKBONE[key]], models | {key: str(place)}, "cpu", 4)


@pytest.mark.slow
def test_a_directory_of_another_model_or_of_none_is_refused(models, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no Dinov2Model"):
        make_metrics(["DINO"], models | {"dino": models["clip"]}, "cpu", 4)
    with pytest.raises(ConfigError, match="no CLIPModel"):
        make_metrics(["CLIP"], models | {"clip": str(tmp_path)}, "cpu", 4)
    with pytest.raises(ConfigError, match="no aesthetic head"):
        make_metrics(["AES"], models | {"aesthetic": str(tmp_path)}, "cpu", 4)


def test_the_layer_that_intels_depth_checkpoints_lack_may_be_missing(models, tmp_path: Path) -> None:
    place = tmp_path / "depth"
    shutil.copytree(models["depth"], place)
    weights = load_file(place / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "fusion_stage.layers.0.residual_layer1" not in name}
    assert len(kept) < len(weights)
    save_file(kept, place / "model.safetensors", {"format": "pt"})
    condition = drawn(9).convert("L")
    known = {"references": [{"map": "depth"}]}
    one = made(1, encoded(drawn(1)), references=(encoded(condition),), condition=1, truth=known)
    scores = []
    for value in (models["depth"], str(place)):
        (metric,), _ = make_metrics(["depth RMSE"], {"depth": value}, "cpu", 4)
        assert isinstance(metric, Metric)
        scores += metric.score([one])
    assert scores[0] == scores[1]  # random as it is, nothing depends on it


@pytest.mark.slow
def test_the_size_of_a_batch_changes_no_score(models) -> None:
    def results() -> list[Result]:
        known = {"references": [{}, {}, {"map": "depth"}]}
        sizes = [(48, 40), (40, 48), (60, 60), (33, 70), (48, 40), (64, 32), (50, 50)]
        return [made(n, encoded(drawn(n + 500, size)), condition=3, truth=known) for n, size in enumerate(sizes)]

    scores = {}
    for batch in (1, 3, 7):
        made_, _ = make_metrics(None, models, "cpu", batch)
        scores[batch] = {one.name: one.score(results()) for one in made_ if isinstance(one, Metric)}
    for name, alone in scores[1].items():
        assert np.ptp(alone) > 0 or name == "F1"
        for batch in (3, 7):
            assert scores[batch][name] == pytest.approx(alone, rel=1e-5), name


def test_only_fid_is_a_metric_of_sets(models) -> None:
    made_, skipped = make_metrics(None, models, "cpu", 4)
    assert {one.name for one in made_ if isinstance(one, SetMetric)} == {"FID"} - skipped.keys()
