"""Edge F1 and depth RMSE against control maps, and the kinds of control maps."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageDraw
from support.image_files import encoded
from support.tiny_backbones import SIDE, drawn, made

from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.metrics.base import Metric
from pipelines.evaluate.metrics.control import Condition, EdgeF1, condition_of
from pipelines.evaluate.metrics.registry import make_metrics
from sigma_data.conditions.canny import canny
from sigma_data.sample import Family
from sigma_data.synthetic.sampling import draw_sample


def boxes(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Flat boxes on a flat ground: clear edges."""
    dice = np.random.default_rng(seed)
    image = Image.new("RGB", size, (10, 20, 15))
    draw = ImageDraw.Draw(image)
    for level in (150, 230):
        left, top = dice.integers(4, 30, 2).tolist()
        draw.rectangle((left, top, left + 20, top + 12), fill=(level, level - 40, 255 - level))
    return image


def edge_map(image: Image.Image) -> Image.Image:
    return Image.fromarray(canny(np.asarray(image.convert("L")), 100, 200))


def asked(condition: Image.Image, output: Image.Image) -> Result:
    return made(1, encoded(output), references=(encoded(drawn(7)), encoded(condition.convert("RGB"))), condition=2)


def depth_map(models: dict[str, str], image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The model's depth at `size` (width, height), 0..1: prepared by hand, one at a time."""
    model = transformers.DPTForDepthEstimation.from_pretrained(models["depth"]).eval()
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255
    given = torch.tensor((pixels - 0.5) / 0.5, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        depth = model(given).predicted_depth[None]
        large = torch.nn.functional.interpolate(depth, size[::-1], mode="bilinear")[0, 0].double().numpy()
    return (large - large.min()) / (large.max() - large.min())


def ramp(size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.linear_gradient("L").resize(size)


class TestKinds:
    @pytest.mark.parametrize("index", range(12))
    def test_the_truth_of_a_world_sample_says_it(self, index: int) -> None:
        sample = draw_sample(seed=5, size=64, format="png", family=Family.LAYOUT, index=index)
        truth = json.loads(sample.truth)
        number = truth["sources"]["layout"]
        item = Item("1", "layout", "", references=sample.images[:-1], condition=number, truth=truth)
        expected = Condition.DEPTH if truth["kind"] == "depth" else Condition.EDGES
        assert condition_of(item) is expected

    def test_otherwise_the_image_does(self) -> None:
        kinds = {
            Condition.EDGES: edge_map(boxes(1)).convert("RGB"),
            Condition.DEPTH: ramp(),
            Condition.IMAGE: boxes(1),
        }
        for kind, image in kinds.items():
            assert condition_of(asked(image, image).item) is kind

    def test_an_edge_map_kept_as_jpeg_is_still_one(self) -> None:
        buffer = io.BytesIO()
        edge_map(boxes(1, (256, 192))).convert("RGB").save(buffer, "JPEG", quality=90)
        item = Item("1", "layout", "", references=(buffer.getvalue(),), condition=1)
        assert condition_of(item) is Condition.EDGES

    def test_each_metric_takes_its_own_kind(self, models) -> None:
        edges, depth = EdgeF1(), self._depth(models)
        by_kind = {
            "edges": asked(edge_map(boxes(1)), boxes(1)).item,
            "depth": asked(ramp(), boxes(1)).item,
            "image": asked(boxes(2), boxes(1)).item,
            "none": made(1, b"").item,
        }
        assert {kind for kind, item in by_kind.items() if edges.applies(item)} == {"edges", "image"}
        assert {kind for kind, item in by_kind.items() if depth.applies(item)} == {"depth"}

    @staticmethod
    def _depth(models: dict[str, str]) -> Metric:
        (metric,), _ = make_metrics(["depth RMSE"], models, "cpu", 4)
        assert isinstance(metric, Metric)
        return metric


class TestEdgeF1:
    def test_the_image_whose_edges_were_asked_for_scores_1_and_another_less(self) -> None:
        right, wrong = asked(edge_map(boxes(1)), boxes(1)), asked(edge_map(boxes(1)), boxes(2))
        scores = EdgeF1().score([right, wrong])
        assert scores[0] == 1
        assert scores[1] < 0.6

    def test_an_image_as_condition_goes_through_the_same_canny(self) -> None:
        assert EdgeF1().score([asked(boxes(1), boxes(1))]) == [1]

    def test_the_output_is_compared_at_the_conditions_size(self) -> None:
        condition = edge_map(boxes(1))
        large = boxes(1).resize((256, 192), Image.Resampling.NEAREST)
        small = large.resize((64, 48), Image.Resampling.BICUBIC)
        edges, wanted = np.asarray(edge_map(small)), np.asarray(condition)
        met = (edges & wanted).sum()
        expected = 2 * met / (edges.sum() + wanted.sum())  # F1 in its other form
        assert EdgeF1().score([asked(condition, large)]) == pytest.approx([expected], abs=1e-12)
        assert expected > 0.5

    def test_the_definition_names_thresholds_and_tolerance(self) -> None:
        assert "(100, 200;" in EdgeF1().definition
        assert "tolerance 3 pixels" in EdgeF1(3).definition


class TestDepthRmse:
    def test_it_is_the_rmse_of_the_two_scaled_maps(self, models) -> None:
        (metric,), _ = make_metrics(["depth RMSE"], models, "cpu", 2)
        assert isinstance(metric, Metric)
        some = [asked(ramp(size), drawn(number)) for number, size in enumerate([(40, 30), (25, 50), (64, 64)])]
        expected = []
        for number, result in enumerate(some):
            condition = np.asarray(Image.open(io.BytesIO(result.item.references[1])).convert("L")).astype(float)
            condition = (condition - condition.min()) / (condition.max() - condition.min())
            depth = depth_map(models, drawn(number), condition.shape[::-1])
            expected.append(np.sqrt(((depth - condition) ** 2).mean()))
        assert metric.score(some) == pytest.approx(expected, abs=1e-5)

    def test_the_outputs_own_depth_scores_0_but_for_rounding_and_anothers_more(self, models) -> None:
        (metric,), _ = make_metrics(["depth RMSE"], models, "cpu", 2)
        assert isinstance(metric, Metric)
        exact = depth_map(models, drawn(1), (48, 40))
        condition = Image.fromarray(np.rint(exact * 255).astype(np.uint8))
        depth = {"references": [{"map": None}, {"map": "depth"}]}
        right, wrong = (
            made(1, encoded(drawn(n)), references=(b"", encoded(condition)), condition=2, truth=depth) for n in (1, 2)
        )
        scores = metric.score([right, wrong])
        assert scores[0] < 1 / 255
        assert scores[1] > 10 * scores[0]

    def test_a_flat_map_is_no_division_by_zero(self, models) -> None:
        (metric,), _ = make_metrics(["depth RMSE"], models, "cpu", 2)
        assert isinstance(metric, Metric)
        (value,) = metric.score([asked(Image.new("L", (20, 20), 128), drawn(1))])
        assert 0 < value <= 1
