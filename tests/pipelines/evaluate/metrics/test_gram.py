"""The Gram distance to the style reference, against the formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.image_files import encoded
from support.tiny_backbones import SIDE, drawn, made

from pipelines.evaluate.metrics.base import Metric
from pipelines.evaluate.metrics.registry import make_metrics


def gram(models: dict[str, str]) -> Metric:
    (metric,), _ = make_metrics(["style Gram"], models, "cpu", 3)
    assert isinstance(metric, Metric)
    return metric


def grams(models: dict[str, str], image: Image.Image) -> list[np.ndarray]:
    """G[a, b] = mean over places of map a times map b, for the first three stages."""
    model = transformers.ResNetModel.from_pretrained(models["gram"]).eval()
    processor = transformers.ConvNextImageProcessor.from_pretrained(models["gram"])
    with torch.no_grad():
        values = model.embedder(processor(images=image, return_tensors="pt")["pixel_values"])
        found = []
        for stage in model.encoder.stages[:3]:
            values = stage(values)
            found.append(np.einsum("ahw,bhw->ab", *2 * [values[0].double().numpy()]) / values[0, 0].numel())
    return found


@pytest.mark.slow
def test_it_is_the_mean_relative_distance_of_three_stages(models) -> None:
    outputs, styles = [drawn(n, (SIDE, SIDE)) for n in (1, 2, 3, 4)], [drawn(n, (SIDE, SIDE)) for n in (5, 6, 7, 8)]
    some = [made(1, encoded(out), references=(b"", encoded(style))) for out, style in zip(outputs, styles, strict=True)]
    expected = [
        np.mean(
            [
                np.sqrt(((a - b) ** 2).sum() / (b**2).sum())
                for a, b in zip(grams(models, out), grams(models, style), strict=True)
            ]
        )
        for out, style in zip(outputs, styles, strict=True)
    ]
    assert gram(models).score(some) == pytest.approx(expected, rel=1e-5)
    assert min(expected) > 0.01


def test_the_style_reference_itself_scores_0_and_another_image_more(models) -> None:
    right, wrong = made(1, encoded(drawn(201))), made(1, encoded(drawn(1)))
    scores = gram(models).score([right, wrong])
    assert scores[0] == pytest.approx(0, abs=1e-5)
    assert scores[1] > 0.01


def test_it_is_for_items_with_a_style_reference(models) -> None:
    assert gram(models).applies(made(1, b"").item)
    assert not gram(models).applies(made(1, b"", style=0).item)
