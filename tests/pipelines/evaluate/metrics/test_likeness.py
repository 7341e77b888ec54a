"""CLIP, CLIP-I, DINO, style, CLIP-ES and AES on tiny models, against a computation of our own."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from support.image_files import encoded
from support.tiny_backbones import SIDE, WIDTH, drawn, head, made

from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.metrics.base import Metric
from pipelines.evaluate.metrics.registry import make_metrics
from sigma_data.errors import ConfigError
from sigma_data.images.decode import ImageFault
from sigma_data.sample import Family
from sigma_data.synthetic.sampling import draw_sample

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def metric(name: str, models: dict[str, str], batch: int = 4) -> Metric:
    made_, skipped = make_metrics([name], models, "cpu", batch)
    assert not skipped
    assert isinstance(made_[0], Metric)
    return made_[0]


def prepared(data: bytes, side: int, mean: Any, std: Any) -> torch.Tensor:
    """Short side to `side` bicubic, centre crop to SIDE, normalised: [1, 3, SIDE, SIDE]."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    width, height = (int(side * length / short) for length in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    cut = pixels[top : top + SIDE, left : left + SIDE] / 255
    normal = (cut - np.array(mean)) / np.array(std)
    return torch.tensor(normal, dtype=torch.float32).permute(2, 0, 1)[None]


def clip_vector(models: dict[str, str], data: bytes) -> np.ndarray:
    model = transformers.CLIPModel.from_pretrained(models["clip"]).eval()
    with torch.no_grad():
        vision = model.vision_model(pixel_values=prepared(data, SIDE, CLIP_MEAN, CLIP_STD))
        vector = model.visual_projection(vision.pooler_output)[0].double().numpy()
    return vector / np.linalg.norm(vector)


def dino_vector(models: dict[str, str], data: bytes) -> np.ndarray:
    model = transformers.Dinov2Model.from_pretrained(models["dino"]).eval()
    with torch.no_grad():
        output = model(prepared(data, SIDE + 4, IMAGENET_MEAN, IMAGENET_STD))
    vector = output.pooler_output[0].double().numpy()
    return vector / np.linalg.norm(vector)


def results(count: int = 5) -> list[Result]:
    return [made(number, encoded(drawn(50 + number))) for number in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "vector"), [("CLIP-I", clip_vector), ("DINO", dino_vector)])
def test_likeness_to_the_answer_is_100_times_the_cosine_of_embeddings(models, name, vector) -> None:
    some = results()
    expected = [100 * vector(models, one.image) @ vector(models, one.item.answer) for one in some]
    assert metric(name, models).score(some) == pytest.approx(expected, rel=1e-5)
    assert np.ptp(expected) > 0.1  # the tiny model tells images apart


@pytest.mark.slow
def test_style_is_the_cosine_with_the_style_reference(models) -> None:
    some = results()
    expected = [100 * clip_vector(models, one.image) @ clip_vector(models, one.item.references[1]) for one in some]
    assert metric("style CLIP-I", models).score(some) == pytest.approx(expected, rel=1e-5)


def test_clip_agrees_with_the_models_own_logits_on_the_plain_words(models) -> None:
    model = transformers.CLIPModel.from_pretrained(models["clip"]).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(models["clip"])
    words = ["a cat", "two dogs, a hat", "red"]
    some = [
        made(n, encoded(drawn(n)), instruction=f"<subject>{text.replace(' ', ' <image_1> ', 1)}")
        for n, text in enumerate(words)
    ]
    expected = []
    for text, one in zip(words, some, strict=True):
        pixels = prepared(one.image, SIDE, CLIP_MEAN, CLIP_STD)
        with torch.no_grad():
            output = model(**tokenizer(text, return_tensors="pt"), pixel_values=pixels)
        expected.append(100 * (output.logits_per_image / model.logit_scale.exp()).item())
    assert metric("CLIP", models).score(some) == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert np.ptp(expected) > 0.1


def test_a_long_instruction_is_cut_where_the_model_ends(models) -> None:
    output = encoded(drawn(1))
    long, longer = (made(1, output, instruction="word " * count) for count in (30, 60))
    clip = metric("CLIP", models)
    assert clip.score([long]) == clip.score([longer])
    assert "cut at 20 tokens" in clip.definition


def test_aes_is_the_affine_head_on_the_unit_embedding(models) -> None:
    some = results()
    layers = load_file(Path(models["aesthetic"]) / "head.safetensors")
    expected = []
    for one in some:
        values = torch.tensor(clip_vector(models, one.image))
        for number in (0, 2, 4, 6, 7):
            values = layers[f"layers.{number}.weight"].double() @ values + layers[f"layers.{number}.bias"].double()
        expected.append(values.item())
    assert metric("AES", models).score(some) == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_a_pth_head_scores_as_its_safetensors_does(models, tmp_path: Path) -> None:
    file = Path(models["aesthetic"]) / "head.safetensors"
    torch.save(load_file(file), tmp_path / "aesthetic-model.pth")
    some = results(2)
    other = models | {"aesthetic": str(tmp_path)}
    assert metric("AES", other).score(some) == metric("AES", models).score(some)


def test_a_pickle_that_would_run_code_is_refused(models, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save(Evil(), tmp_path / "aesthetic-model.pth")
    with pytest.raises(ConfigError, match="no aesthetic head"):
        make_metrics(["AES"], models | {"aesthetic": str(tmp_path)}, "cpu", 4)
    assert not (tmp_path / "ran").exists()


def test_a_head_for_another_clip_is_refused(models, tmp_path: Path) -> None:
    save_file(head(WIDTH + 1), tmp_path / "head.safetensors")
    with pytest.raises(ConfigError, match=f"width {WIDTH + 1}.*have {WIDTH}"):
        make_metrics(["AES"], models | {"aesthetic": str(tmp_path)}, "cpu", 4)


@pytest.mark.parametrize("name", ["CLIP-I", "DINO"])
def test_the_answer_itself_scores_100_and_anothers_answer_less(models, name: str) -> None:
    right = [made(number, encoded(drawn(number))) for number in range(4)]
    swapped = [made(number, encoded(drawn((number + 1) % 4))) for number in range(4)]
    scores = metric(name, models).score([*right, *swapped])
    assert scores[:4] == pytest.approx([100] * 4, abs=1e-9)
    assert max(scores[4:]) < 99.9


def test_the_style_reference_itself_scores_100(models) -> None:
    one = made(1, encoded(drawn(201)))
    assert metric("style CLIP-I", models).score([one]) == pytest.approx([100], abs=1e-9)


class TestExclusivity:
    def test_giving_the_whole_input_back_is_the_worst(self, models) -> None:
        back, other = made(1, encoded(drawn(101))), made(1, encoded(drawn(1)))
        exclusivity = metric("CLIP-ES", models)
        worst, better = exclusivity.score([back, other])
        assert worst == pytest.approx(100, abs=1e-9)
        assert better < worst
        assert exclusivity.better == "down"

    @pytest.mark.parametrize("index", range(4))
    def test_a_known_region_is_painted_over_first(self, models, index: int) -> None:
        sample = draw_sample(seed=3, size=64, format="png", family=Family.SELECTIVE, index=index)
        truth = json.loads(sample.truth)
        number = truth["sources"]["select"]
        (thing,) = (
            one
            for one in truth["references"][number - 1]["scene"]["objects"]
            if one["name"] == truth["change"]["select"]
        )
        left, top, right, bottom = (64 * side for side in thing["box"])
        pixels = np.array(Image.open(io.BytesIO(sample.images[number - 1])).convert("RGB"))
        pixels[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = (122, 116, 104)
        output = encoded(drawn(1))
        one = made(1, output, instruction=sample.instruction, references=sample.images[:-1], truth=truth)
        expected = 100 * clip_vector(models, output) @ clip_vector(models, encoded(Image.fromarray(pixels)))
        assert metric("CLIP-ES", models).score([one]) == pytest.approx([expected], rel=1e-5)

    @pytest.mark.slow
    def test_the_input_is_the_image_the_select_token_speaks_of(self, models) -> None:
        second = made(1, encoded(drawn(201)), instruction="as in <image_1>, <select>the cat of <image_2>")
        assert metric("CLIP-ES", models).score([second]) == pytest.approx([100], abs=1e-9)

    def test_it_is_for_selective_items_with_an_input(self, models) -> None:
        exclusivity = metric("CLIP-ES", models)
        assert exclusivity.applies(made(1, b"").item)
        assert not exclusivity.applies(made(1, b"", family="editing").item)
        assert not exclusivity.applies(made(1, b"", references=()).item)


def test_metrics_apply_where_there_is_something_to_compare_with(models) -> None:
    bare = Item(id="1", family="compositional", instruction="<subject><image_1>")
    applies = {name: metric(name, models).applies(bare) for name in ("CLIP", "CLIP-I", "DINO", "style CLIP-I", "AES")}
    assert applies == {"CLIP": False, "CLIP-I": False, "DINO": False, "style CLIP-I": False, "AES": True}


@pytest.mark.parametrize("name", ["CLIP-I", "DINO", "AES"])
def test_grey_and_transparent_images_score_as_what_they_look_like(models, name: str) -> None:
    grey = drawn(3).convert("L")
    clear = drawn(3).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
    seen = Image.alpha_composite(white, clear).convert("RGB")
    first, second, third, fourth = metric(name, models).score(
        [made(1, encoded(image)) for image in (grey, grey.convert("RGB"), clear, seen)]
    )
    assert first == pytest.approx(second, rel=1e-6)
    assert third == pytest.approx(fourth, rel=1e-6)
    assert first != pytest.approx(third, rel=1e-6)


def test_an_image_is_embedded_once_whoever_asks(models, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0
    original = transformers.CLIPModel.get_image_features

    def counted(self: Any, pixel_values: torch.Tensor) -> Any:
        nonlocal seen
        seen += len(pixel_values)
        return original(self, pixel_values=pixel_values)

    monkeypatch.setattr(transformers.CLIPModel, "get_image_features", counted)
    some = results(3)
    metrics, _ = make_metrics(["CLIP", "CLIP-I", "CLIP-ES", "style CLIP-I", "AES"], models, "cpu", 2)
    for one in metrics:
        assert isinstance(one, Metric)
        one.score(some)
        one.score(some)
    assert seen == 3 * 4  # output, answer, input and style reference of each


def test_a_broken_image_is_named_as_one(models) -> None:
    with pytest.raises(ImageFault):
        metric("CLIP-I", models).score([made(1, b"no image")])
