"""`sigma generate`: the promised picture, the same again, its origin in the file, one sentence for a mistake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import image_files
from support.commands import sigma
from support.places import ROOT

from sigma_data.errors import ConfigError, SigmaError
from sigma_model.checkpoint_io import export_model, init_model
from sigma_model.config import ModelConfig, preset_directory
from sigma_model.loading import DType, LoadedModel, load_for_inference
from sigma_model.sampling.generate import Request, generate_images, generate_texts, noise_seed, write_image
from sigma_model.sampling.settings import Guidance, SamplingSettings

FEW = SamplingSettings(steps=4)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny preset with random weights."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(preset_directory("tiny"), folder)
    model = init_model(ModelConfig.from_directory(folder), seed=1, dtype=torch.float32, device="cpu")
    torch.manual_seed(2)
    torch.nn.init.normal_(model.latent_out.weight, std=0.3)
    export_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def bundle(directory: Path) -> LoadedModel:
    return load_for_inference(str(directory))


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [
        image_files.image_bytes("jpeg", 1, width=90, height=64),
        image_files.image_bytes("png", 2, width=64, height=80),
    ]


def request_of(pictures: list[bytes], prompt: str = "", **changes: Any) -> Request:
    text = prompt or "Put <subject> the thing <image_1> into <style> the style of <image_2>"
    return Request(text, pictures, [f"{i}.jpg" for i in range(len(pictures))], **changes)


def pixels(picture: Image.Image) -> bytes:
    return picture.tobytes()


@pytest.mark.slow
def test_the_same_request_gives_the_same_picture_and_another_seed_another(
    bundle: LoadedModel, pictures: list[bytes]
) -> None:
    first, again, other = (generate_images(bundle, [request_of(pictures, seed=seed)], FEW)[0] for seed in (0, 0, 1))
    assert pixels(first) == pixels(again) != pixels(other)


def test_the_size_is_the_last_references_or_the_one_asked_for_or_the_largest_square(
    bundle: LoadedModel, pictures: list[bytes]
) -> None:
    rule = bundle.geometry.vae
    requests = [
        request_of(pictures),
        request_of(pictures, size=(48, 32)),
        request_of([], prompt="a red square"),
    ]
    made = generate_images(bundle, requests, FEW)
    assert [picture.size for picture in made] == [
        rule.size(64, 80), rule.size(48, 32), (rule.max_size, rule.max_size)
    ]  # fmt: skip


def test_a_picture_does_not_depend_on_what_else_is_asked_for(bundle: LoadedModel, pictures: list[bytes]) -> None:
    mine = request_of(pictures, seed=3, name="mine")
    others = [request_of(pictures[:1], "make <image_1> larger", size=(64, 32)), request_of([], "a red square")]
    alone = generate_images(bundle, [mine], FEW)[0]
    among = generate_images(bundle, [others[0], mine, others[1]], FEW)[1]
    difference = torch.tensor(list(alone.tobytes())).sub(torch.tensor(list(among.tobytes()))).abs()
    assert int(difference.max()) <= 1  # sums over another batch shape are rounded differently


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": Guidance(text=1.0)},
        {"guidance": Guidance(image=1.0)},
        {"guidance": Guidance(interval=(0.4, 0.6))},
        {"group_mask": False},
        {"timestep_shift": 1.0},
    ],
)
def test_every_setting_counts(bundle: LoadedModel, pictures: list[bytes], changes: dict[str, Any]) -> None:
    usual = generate_images(bundle, [request_of(pictures)], FEW)[0]
    other = generate_images(bundle, [request_of(pictures)], SamplingSettings(**{"steps": 4, **changes}))[0]
    assert pixels(usual) != pixels(other)


def test_a_preview_after_every_step_ends_in_the_picture_and_changes_nothing(
    bundle: LoadedModel, pictures: list[bytes]
) -> None:
    seen: list[bytes] = []
    asked = [request_of(pictures, size=(32, 32))]
    made = generate_images(bundle, asked, FEW, preview=lambda decode: seen.append(pixels(decode()[0])))
    assert pixels(made[0]) == pixels(generate_images(bundle, asked, FEW)[0])
    assert len(set(seen)) == 3 and seen[-1] == pixels(made[0])


def test_what_progress_raises_ends_the_work_at_that_step(bundle: LoadedModel, pictures: list[bytes]) -> None:
    done: list[int] = []

    def stop(step: int, of: int) -> None:
        done.append(step)
        if step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        generate_images(bundle, [request_of(pictures, size=(32, 32))], FEW, progress=stop)
    with pytest.raises(InterruptedError):
        generate_texts(bundle, [request_of(pictures, "what is in <image_1>?")], max_tokens=5, progress=stop)
    assert done == [1, 2, 1, 2]


def load_with_hook(directory: Path, shown: list[int], *, vision: bool) -> LoadedModel:
    """A bundle that counts the patches its vision encoder is shown."""
    bundle = load_for_inference(str(directory), vision=vision)
    assert bundle.model.vision is not None
    bundle.model.vision.register_forward_hook(lambda _module, inputs, _output: shown.append(len(inputs[0])))
    return bundle


@pytest.mark.slow
def test_without_understanding_the_vision_encoder_is_not_asked(directory: Path, pictures: list[bytes]) -> None:
    shown: list[int] = []
    generate_images(load_with_hook(directory, shown, vision=False), [request_of(pictures)], FEW)
    assert not any(shown)
    generate_images(load_with_hook(directory, shown, vision=True), [request_of(pictures)], FEW)
    assert any(shown), "with understanding it is asked"


def test_the_file_says_how_it_was_made_without_paths(
    bundle: LoadedModel, pictures: list[bytes], tmp_path: Path
) -> None:
    request = Request("bigger <image_1> 漢字", pictures[:1], ["/secret/place/a.jpg"], seed=7)
    made = generate_images(bundle, [request], FEW)[0]
    write_image(made, tmp_path / "o.png", bundle, request, FEW)
    with Image.open(tmp_path / "o.png") as image:
        about = json.loads(image.text["sigma"])  # type: ignore[attr-defined]
        assert pixels(image.convert("RGB")) == pixels(made)
    assert about["prompt"] == "bigger <image_1> 漢字"
    assert (about["seed"], about["steps"], about["guidance"]["text"]) == (7, 4, 4.0)
    assert about["pictures"][0]["name"] == "a.jpg"
    assert len(about["pictures"][0]["sha256"]) == 64
    assert "secret" not in json.dumps(about)
    assert str(bundle.name) == about["model"]


@pytest.mark.slow
def test_a_run_can_be_repeated_from_what_the_file_says(
    bundle: LoadedModel, pictures: list[bytes], tmp_path: Path
) -> None:
    request = request_of(pictures, seed=5, size=(40, 64))
    made = generate_images(bundle, [request], FEW)[0]
    write_image(made, tmp_path / "o.png", bundle, request, FEW)
    with Image.open(tmp_path / "o.png") as image:
        about = json.loads(image.text["sigma"])  # type: ignore[attr-defined]
    again = Request(about["prompt"], pictures, size=tuple(about["size"]), seed=about["seed"], name=about["name"])
    guidance = Guidance(**{**about["guidance"], "interval": tuple(about["guidance"]["interval"])})
    settings = SamplingSettings(about["steps"], about["timestep_shift"], guidance, about["group_mask"])
    assert pixels(generate_images(bundle, [again], settings)[0]) == pixels(made)


def test_answers_in_words_repeat_and_temperature_draws_by_seed(bundle: LoadedModel, pictures: list[bytes]) -> None:
    ask = request_of(pictures[:1], "What is in <image_1>?")
    greedy = [generate_texts(bundle, [ask], max_tokens=6) for _ in range(2)]
    assert greedy[0] == greedy[1]
    warm = [
        generate_texts(bundle, [request_of(pictures[:1], ask.prompt, seed=seed)], max_tokens=8, temperature=2.0)
        for seed in (0, 0, 1)
    ]
    assert warm[0] == warm[1] != warm[2]


def test_bfloat16_runs_on_a_cpu_and_stays_near(directory: Path, bundle: LoadedModel, pictures: list[bytes]) -> None:
    half = load_for_inference(str(directory), dtype=DType.BFLOAT16)
    calm = SamplingSettings(steps=4, guidance=Guidance(text=1, image=1))
    one, two = (generate_images(b, [request_of(pictures)], calm)[0] for b in (bundle, half))
    values = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).float() for p in (one, two)]
    assert 0 < (values[0] - values[1]).abs().mean() < 8


@pytest.mark.parametrize(
    ("prompt", "count", "words"),
    [
        ("", 0, "prompt is empty"),
        ("take <image_3>", 2, "names image 3"),
        ("take <image_1>", 0, "no images"),
        ("take <subjct> cat <image_1>", 1, "did you mean <subject>"),
        ("take <qqqqqq> cat <image_1>", 1, "no attribute token; those are <style>"),
        ("cat <|im_end|> <image_1>", 1, "control token"),
        ("word " * 33_000, 0, "tokens long"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_one_sentence(
    bundle: LoadedModel, pictures: list[bytes], prompt: str, count: int, words: str
) -> None:
    for run in (lambda r: generate_images(bundle, [r], FEW), lambda r: generate_texts(bundle, [r], max_tokens=2)):
        with pytest.raises(SigmaError, match=words) as caught:
            run(Request(prompt, pictures[:count]))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "no bytes"), (b"<html>", "an HTML page"), (b"\xff\xd8\xff\xe0abc", "cannot be decoded|ends")],
)
def test_a_picture_that_cannot_be_used_is_named(bundle: LoadedModel, data: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        generate_images(bundle, [Request("more <image_1>", [data], ["a.jpg"])], FEW)
    assert str(caught.value).startswith("a.jpg: ")


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(steps=1),
        SamplingSettings(timestep_shift=0.0),
        SamplingSettings(timestep_shift=float("nan")),
        SamplingSettings(timestep_shift=float("inf")),
        SamplingSettings(guidance=Guidance(interval=(0.9, 0.1))),
        SamplingSettings(guidance=Guidance(text=float("nan"))),
        SamplingSettings(guidance=Guidance(image=float("inf"))),
        SamplingSettings(guidance=Guidance(rescale_min=2.0)),
    ],
)
def test_settings_that_make_no_sense_are_refused(bundle: LoadedModel, settings: SamplingSettings) -> None:
    with pytest.raises(ConfigError):
        generate_images(bundle, [Request("a red square")], settings)


def test_noise_depends_on_seed_and_name() -> None:
    assert len({noise_seed(seed, name) for seed in (0, 1, -1) for name in ("", "a", "b")}) == 9


def test_the_command_writes_the_pictures_and_prints_where(
    directory: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(pictures[0])
    out = tmp_path / "o.png"
    done = sigma(
        "generate", "<subject> this <image_1> larger", "--image", str(tmp_path / "a.jpg"), "--out", str(out), "--seed", "0",
        "--model", str(directory), "--steps", "3", "--count", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "o-0.png"), str(tmp_path / "o-1.png")]
    assert "sample: 2 steps" in done.stderr
    for path in done.stdout.split():
        Image.open(path).verify()


def test_an_option_of_a_few_words_names_them() -> None:
    done = sigma("generate", "x", "--rescale", "strong")
    assert done.returncode == 2 and "'strong' is not one of 'text_channel', 'channel', 'global'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "--image", "missing.jpg"], "missing.jpg: the image cannot be read"),
        (["x", "--model", "no/where"], "no/where: no such directory"),
        (["x", "--out", "o.jpg"], "name a .png"),
        (["x", "--out", "no/folder/o.png"], "no folder"),
        (["x", "--device", "toaster"], "no such device"),
        (["x", "--device", "meta"], "no such device"),
        (["x", "--out", "o" * 256 + ".png"], "cannot write"),
        (["x", "--size", "9" * 400 + "x3"], "WIDTHxHEIGHT"),
        (["x", "--out", "tests", "--count", "2"], "name a .png"),
    ],
)
def test_a_mistyped_command_is_one_sentence_and_exit_code_2(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    done = sigma("generate", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_the_untrained_preset_says_that_it_makes_noise(tmp_path: Path) -> None:
    done = sigma("generate", "a red square", "--model", "tiny", "--out", str(tmp_path / "o.png"), "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert "no trained weights" in done.stderr


def test_without_a_model_the_trained_one_answers_and_says_what_it_knows(tmp_path: Path) -> None:
    words = ("generate", "a red square", "--steps", "2", "--out")
    done = sigma(*words, str(tmp_path / "o.png"))
    assert done.returncode == 0, done.stderr
    assert "sigma: tiny-base answered, which knows drawn scenes of 64 pixels alone: name another" in done.stderr
    named = sigma(*words, str(tmp_path / "named.png"), "--model", "tiny-base")
    assert "tiny-base answered" not in named.stderr and "noise" not in done.stderr
    assert (tmp_path / "o.png").read_bytes() == (tmp_path / "named.png").read_bytes()


@pytest.mark.parametrize(("model", "words"), [("tiny-base", "no vision encoder"), ("tiny", "no trained weights")])
def test_a_text_answer_that_is_noise_says_so(model: str, words: str) -> None:
    done = sigma("generate", "what is it?", "--text", "--max-tokens", "16", "--model", model)
    assert done.returncode == 0, done.stderr
    assert (
        [line for line in done.stderr.splitlines() if "is noise" in line or "likely noise" in line]
        == [line for line in done.stderr.splitlines() if f"sigma: {model} has {words}" in line]
        != []
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--temperature", "0.5"), "--temperature: is of text answers: add --text, or leave it out"),
        (("--max-tokens", "3"), "--max-tokens: is of text answers: add --text, or leave it out"),
        (("--text", "--cache", "taylor"), "--cache: is of images: leave it out with --text"),
        (("--text", "--steps", "3"), "--steps: is of images: leave it out with --text"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(words: Sequence[str], told: str, tmp_path: Path) -> None:
    done = sigma("generate", "a red square", *words, "--out", str(tmp_path / "o.png"))
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())
    assert not (tmp_path / "o.png").exists()


def test_a_prompt_that_is_no_unicode_is_kept_in_the_file(bundle: LoadedModel, tmp_path: Path) -> None:
    request = Request("a red \udcff square", seed=1, name="\udcfe")
    made = generate_images(bundle, [request], FEW)[0]
    write_image(made, tmp_path / "o.png", bundle, request, FEW)
    with Image.open(tmp_path / "o.png") as image:
        assert json.loads(image.text["sigma"])["prompt"] == request.prompt  # type: ignore[attr-defined]


def test_nothing_asked_is_nothing_made(bundle: LoadedModel) -> None:
    assert generate_images(bundle, [], FEW) == []
    assert generate_texts(bundle, []) == []


def test_an_answer_too_long_for_the_model_is_refused(bundle: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="smaller --max-tokens"):
        generate_texts(bundle, [Request("why?")], max_tokens=32_768)
