"""`sigma generate --example`: what a new user types first."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.commands import sigma

from pipelines.generate.example import SAMPLING

ROOT = Path(__file__).parents[3]
SCALES = ("text_scale", "image_scale")


def test_the_example_is_sampled_as_the_quickstart_samples() -> None:
    validation = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())["validation"]
    assert dict(SAMPLING) == {"steps": validation["image_steps"]} | {k: validation[k] for k in SCALES}


@pytest.mark.slow
def test_the_example_needs_nothing_and_says_what_it_composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = sigma("generate", "--example")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "out.png\n" and "<image_1>" in ended.stderr
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0] == "out-reference-1.png" and names[-1] == "out.png"
    again = [word for name in names[:-1] for word in ("--image", name)]
    prompt = next(line for line in ended.stderr.splitlines() if "<image_1>" in line).removeprefix("sigma: ")
    sampling = ("--model", "tiny-base", "--steps", "9", "--text-scale", "2", "--image-scale", "1.2")
    made = sigma("generate", prompt, *again, *sampling, "--out", "same.png")
    assert made.returncode == 0, made.stderr
    assert Path("same.png").read_bytes() == Path("out.png").read_bytes()
    refused = sigma("generate", "--example", "--image", "out.png")
    assert refused.returncode == 2 and "has a prompt and images of its own" in refused.stderr
