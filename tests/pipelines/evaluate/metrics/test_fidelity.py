"""PSNR, SSIM, LPIPS, DreamSim and FID against the formulas in numpy, or stand-ins of packages that need torchvision."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_files import encoded
from support.tiny_backbones import drawn, made

from pipelines.evaluate.item import Result
from pipelines.evaluate.metrics.base import Metric
from pipelines.evaluate.metrics.fid import Fid
from pipelines.evaluate.metrics.fidelity import Psnr, Ssim
from pipelines.evaluate.metrics.registry import make_metrics
from sigma_data.errors import ConfigError
from sigma_data.images.decode import ImageFault


def noisy(seed: int, strength: float) -> Image.Image:
    """The image of that seed with noise."""
    noise = np.random.default_rng(seed + 1000).normal(0, strength, (40, 48, 3))
    return Image.fromarray((np.asarray(drawn(seed)) + noise).clip(0, 255).astype(np.uint8))


def psnr(output: Image.Image, answer: Image.Image) -> float:
    difference = np.asarray(output).astype(float) - np.asarray(answer).astype(float)
    return float(20 * np.log10(255 / np.sqrt((difference**2).mean())))


def ssim(output: Image.Image, answer: Image.Image) -> float:
    """Wang et al. 2004: an 11 x 11 Gaussian window of sigma 1.5 slid over images mirrored at the border."""
    offsets = np.arange(-5, 6)
    bell = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2

    def local(values: np.ndarray) -> np.ndarray:
        around = np.pad(values, ((5, 5), (5, 5), (0, 0)), mode="reflect")
        views = np.lib.stride_tricks.sliding_window_view(around, (11, 11), (0, 1))
        return np.einsum("hwcij,ij->hwc", views, window)

    x, y = (np.asarray(image) / 255 for image in (output, answer))
    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    both = local(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    map_ = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(map_.mean())


FORMULAS: list[tuple[type[Psnr] | type[Ssim], Callable[..., float], float]] = [(Psnr, psnr, 100), (Ssim, ssim, 1)]


@pytest.mark.parametrize(("kind", "formula", "perfect"), FORMULAS)
class TestPixels:
    def test_it_agrees_with_its_formula(self, kind, formula, perfect) -> None:
        outputs = [noisy(seed, 5 * seed) for seed in range(1, 5)]
        expected = [formula(output, drawn(seed)) for seed, output in enumerate(outputs, 1)]
        some = [made(seed, encoded(output)) for seed, output in enumerate(outputs, 1)]
        assert kind("cpu").score(some) == pytest.approx(expected, abs=1e-5)
        assert len(set(expected)) == 4

    def test_the_answer_itself_is_perfect_and_anothers_is_worse(self, kind, formula, perfect) -> None:
        right, swapped = made(1, encoded(drawn(1))), made(1, encoded(drawn(2)))
        scores = kind("cpu").score([right, swapped])
        assert scores[0] == pytest.approx(perfect, abs=1e-9)
        assert scores[1] < 0.6 * perfect

    def test_an_output_of_another_size_is_brought_to_the_answers(self, kind, formula, perfect) -> None:
        large = drawn(1).resize((100, 90), Image.Resampling.NEAREST)
        brought = large.resize((48, 40), Image.Resampling.BICUBIC)
        (score,) = kind("cpu").score([made(1, encoded(large))])
        assert score == pytest.approx(formula(brought, drawn(1)), abs=1e-5)

    def test_grey_and_transparent_images_count_as_what_they_look_like(self, kind, formula, perfect) -> None:
        grey = drawn(1).convert("L")
        clear = grey.convert("LA")
        clear.putalpha(Image.new("L", clear.size, 0))
        answers = (grey.convert("RGB"), Image.new("RGB", grey.size, "white"))
        some = [made(1, encoded(out), answer=encoded(ans)) for out, ans in zip((grey, clear), answers, strict=True)]
        assert kind("cpu").score(some) == pytest.approx([perfect, perfect], abs=1e-9)

    def test_it_needs_an_answer(self, kind, formula, perfect) -> None:
        assert not kind("cpu").applies(made(1, b"", answer=None).item)


def test_an_image_smaller_than_ssims_window_is_named_as_too_small() -> None:
    small = encoded(drawn(1, (10, 40)))
    with pytest.raises(ImageFault, match="11 x 11"):
        Ssim("cpu").score([made(1, small, answer=small)])


class Features(torch.nn.Module):
    """Six numbers of an image: mean and spread of each channel."""

    num_features = 6

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        values = pixels.double() / 16
        return torch.cat([values.mean((2, 3)), values.std((2, 3))], 1)


class TestFid:
    @staticmethod
    def fid(batch: int = 4) -> Fid:
        from torchmetrics.image.fid import FrechetInceptionDistance

        return Fid(FrechetInceptionDistance(feature=Features()), "tiny", "cpu", batch)

    @staticmethod
    def set_of(outputs: Sequence[int]) -> list[Result]:
        return [made(number, encoded(drawn(output))) for number, output in enumerate(outputs)]

    def test_it_is_the_frechet_distance_of_two_gaussians(self) -> None:
        some = self.set_of(range(40, 52))
        features = []
        for images in ([drawn(number) for number in range(12)], [drawn(number) for number in range(40, 52)]):
            pixels = [np.asarray(image.resize((299, 299), Image.Resampling.BICUBIC)) for image in images]
            stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
            features.append(Features()(stacked).numpy())
        (mean_a, cov_a), (mean_b, cov_b) = ((values.mean(0), np.cov(values.T)) for values in features)
        values, vectors = np.linalg.eigh(cov_a)
        root = vectors * np.sqrt(values) @ vectors.T
        # The trace of the root of a product, by a symmetric matrix of the same eigenvalues.
        trace = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
        expected = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace
        assert self.fid().score_set(some) == pytest.approx(expected, rel=1e-5)
        assert expected > 1

    def test_the_answers_themselves_score_0_in_any_order_and_others_more(self) -> None:
        order = np.random.default_rng(0).permutation(12).tolist()
        fid = self.fid()
        assert fid.score_set(self.set_of(order)) == pytest.approx(0, abs=1e-5)
        assert fid.score_set(self.set_of(range(40, 52))) > 1

    @pytest.mark.slow
    def test_batches_do_not_change_it_and_sets_do_not_mix(self) -> None:
        some, others = self.set_of(range(40, 52)), self.set_of(range(60, 72))
        fid = self.fid(batch=5)
        fid.score_set(others)
        assert fid.score_set(some) == pytest.approx(self.fid(batch=1).score_set(some), rel=1e-9)

    def test_fewer_results_than_features_are_refused(self) -> None:
        fid = self.fid()
        assert fid.least == 6
        with pytest.raises(ValueError, match="6 results or more, not 5"):
            fid.score_set(self.set_of(range(5)))

    def test_a_directory_gives_its_one_file_to_inception(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import torchmetrics.image.fid as module

        given: dict[str, Any] = {}

        def stand_in(**options: Any) -> Any:
            given.update(options)
            return original(feature=Features())

        original = module.FrechetInceptionDistance
        monkeypatch.setattr(module, "FrechetInceptionDistance", stand_in)
        with pytest.raises(ConfigError, match="0 .pth files"):
            make_metrics(["FID"], {"inception": str(tmp_path)}, "cpu", 2)
        (tmp_path / "inception.pth").touch()
        (fid,), skipped = make_metrics(["FID"], {"inception": str(tmp_path)}, "cpu", 2)
        assert isinstance(fid, Fid)
        assert not skipped
        assert given == {"feature": 2048, "feature_extractor_weights_path": str(tmp_path / "inception.pth")}


class Lpips(torch.nn.Module):
    """What we use of torchmetrics' class: the mean square difference of images in 0..1."""

    hubs: list[str] = []

    def __init__(self, net_type: str, normalize: bool) -> None:
        super().__init__()
        assert normalize
        self.hubs.append(torch.hub.get_dir())

    def forward(self, output: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        assert output.shape == answer.shape
        assert output.dtype == torch.float32
        assert output.max() > 0.5 and output.min() >= 0 and output.max() <= 1
        return ((output - answer) ** 2).mean()

    def reset(self) -> None:
        pass


@pytest.fixture
def lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchmetrics.image.lpip as module

    monkeypatch.setattr(Lpips, "hubs", [])
    monkeypatch.setattr(module, "LearnedPerceptualImagePatchSimilarity", Lpips)


def test_lpips_compares_pairs_in_the_unit_range(lpips) -> None:
    (metric,), _ = make_metrics(["LPIPS"], {}, "cpu", 2)
    assert isinstance(metric, Metric)
    outputs = [drawn(1), noisy(1, 20), drawn(1).resize((90, 70), Image.Resampling.NEAREST)]
    brought = [image.resize((48, 40), Image.Resampling.BICUBIC) for image in outputs]
    expected = [((np.asarray(image) / 255 - np.asarray(drawn(1)) / 255) ** 2).mean() for image in brought]
    assert metric.score([made(1, encoded(image)) for image in outputs]) == pytest.approx(expected, abs=1e-6)
    assert expected[0] == 0 < min(expected[1:])


def test_lpips_takes_its_trunk_from_a_directory_and_leaves_torch_hub_as_it_was(lpips, tmp_path: Path) -> None:
    before = torch.hub.get_dir()
    (metric,), _ = make_metrics(["LPIPS"], {"lpips": str(tmp_path)}, "cpu", 2)
    assert Lpips.hubs == [str(tmp_path)]
    assert torch.hub.get_dir() == before
    assert str(tmp_path) in metric.definition


def stand_in_dreamsim(calls: list[dict[str, Any]]) -> Any:
    """The package's interface: (model, preprocess); its distance here is the mean absolute difference."""

    def model(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first - second).abs().mean((1, 2, 3))

    def preprocess(image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)) / np.float32(255)
        return torch.from_numpy(pixels).permute(2, 0, 1)[None]

    def dreamsim(**options: Any) -> Any:
        sys.stdout.write("Using cached weights")
        calls.append(options)
        return model, preprocess

    return SimpleNamespace(dreamsim=dreamsim)


def test_dreamsim_is_100_times_one_minus_the_packages_distance(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "dreamsim", stand_in_dreamsim(calls))
    (metric,), _ = make_metrics(["DreamSim"], {"dreamsim": str(tmp_path)}, "cpu", 2)
    assert isinstance(metric, Metric)
    assert calls == [{"pretrained": True, "device": "cpu", "cache_dir": str(tmp_path), "dreamsim_type": "ensemble"}]
    assert capsys.readouterr().out == ""

    def small(seed: int) -> np.ndarray:
        return np.asarray(drawn(seed).resize((16, 16), Image.Resampling.BICUBIC)) / 255

    some = [made(seed, encoded(drawn(seed + shift))) for seed, shift in ((1, 0), (1, 9), (2, 9))]
    expected = [100 * (1 - abs(small(a) - small(b)).mean()) for a, b in ((1, 1), (1, 10), (2, 11))]
    assert metric.score(some) == pytest.approx(expected, abs=1e-4)
    assert metric.score(some[:1]) == [100]
    assert max(expected[1:]) < 99


def test_dreamsim_never_keeps_its_files_in_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "dreamsim", stand_in_dreamsim(calls))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch" / "hub"))
    make_metrics(["DreamSim"], {"dreamsim": "dino_vitb16"}, "cpu", 2)
    assert calls[0]["dreamsim_type"] == "dino_vitb16"
    assert Path(calls[0]["cache_dir"]) == tmp_path / "torch" / "hub" / "dreamsim"
    assert Path(calls[0]["cache_dir"]).parent.is_dir()
