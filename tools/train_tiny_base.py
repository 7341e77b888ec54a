"""Train the tiny preset's base: `python -m tools.train_tiny_base --out DIR`, again to go on.

What BAGEL is to SIGMA: a model that copies, edits and composes from references by plain captions, trained on the world
without attribute tokens and without the group mask. Samples of a seed that no demo uses, and simple tasks beside them,
are drawn once into `--data`; then one CPU thread trains, saving every few minutes. `--decay N` ends the training: the
rates fall to zero over the last N steps. DIR/model is the average of the weights, bfloat16, in the released layout.
`--start tiny-base` goes on from the shipped weights.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigma_data.sequence.tokenizer import Tokenizer
from sigma_data.sequence.tokenizer_reader import TOKENIZER_FILES
from sigma_data.storage.files import write_atomic
from sigma_model.checkpoint_io import export_model, init_model, load_model
from sigma_model.config import PRESETS, VAE_FILE, ModelConfig, preset, preset_directory
from sigma_model.model import SigmaModel
from sigma_model.vae import Vae
from tools.tiny_base_data import COPY, TASK, Corpus, Maker, draw, load
from tools.tiny_base_network import Muon, Network
from tools.tiny_base_start import prepare

SEED = 7
"""Of the world: the demo's is 0."""
HELD_OUT = 288
"""The first samples, never trained on: the first half asks as the world does, the last ones for copies."""
LEVELS = (0.999, 0.7)
"""Noise levels at which held-out samples are looked at: at the first nearly all must come from references and text."""
STATE, LOG, MODEL = "state.pt", "log.jsonl", "model"


@dataclass(frozen=True)
class Options:
    """How to train. Small batches: by sample, 8 learns three times as fast as 32 while copying forms."""

    samples: int = 24_000
    tasks: int = 12_000
    maps: int = 12_000
    """Scenes to be turned into instance colour maps."""
    first: int = 0
    """Number of the first sample drawn: to go on, one that `start` has not seen."""
    batch: int = 8
    steps: int = 30_000
    decay: int = 0
    warmup: int = 20
    rate: float = 2e-3
    """Of Muon; with AdamW's 1e-3 for vectors and 2e-3 for embeddings."""
    outer_rate: float = 5e-4
    """Of matrices outside the layers: more would overwrite how latents enter and leave within 20 steps."""
    simple: float = 0.35
    """Share of simple tasks among the samples, if there are any."""
    copy: float = 0.1
    drop: float = 0.03
    ema: float = 0.998
    every: int = 500
    save_s: float = 300.0
    seed: int = 0
    start: str = ""
    """A preset with weights or a model directory to go on from; none is a random start."""


SHARES = {
    "compositional": 1.6,
    "layout": 2.0,
    "selective": 1.2,
    "stylization": 1.0,
    "editing": 0.8,
    "relation": 0.9,
    "segmentation": 0.7,
}
"""How often the families come: those that are learnt last more often."""


def config() -> ModelConfig:
    """The tiny preset without vision, a layer deeper, and with as many key-value heads as heads: two match places."""
    found = preset("tiny")
    changes = {"num_key_value_heads": found.language.num_attention_heads, "num_hidden_layers": 5}
    language = found.language.model_copy(update=changes)
    return found.model_copy(update={"language": language, "vision": None})


class Training:
    """All that changes, and what it learns from."""

    def __init__(self, options: Options, tokenizer: Tokenizer, corpus: Corpus, *, compiled: bool = True) -> None:
        self.options, self._tokenizer, self._corpus = options, tokenizer, corpus
        self.model = _start(options).requires_grad_(True)
        self._network = Network(self.model, compiled=compiled)
        self._optimizer = Muon(self.model, (options.rate, options.outer_rate, 1e-3, 2e-3))
        self.averages = [one.detach().clone() for one in self._optimizer.parameters]
        self._rng = random.Random(options.seed)  # noqa: S311
        self._generator = torch.Generator().manual_seed(options.seed)
        self._maker = Maker(tokenizer, self._rng, self._generator, copy=options.copy, drop=options.drop)
        self._numbers: dict[str, list[int]] = defaultdict(list)
        for number, sample in enumerate(corpus.samples[HELD_OUT:], start=HELD_OUT):
            self._numbers[sample.family].append(number)
        self.step = 0

    def _pick(self) -> int:
        """The number of a sample to train on."""
        if TASK in self._numbers and self._rng.random() < self.options.simple:
            return self._rng.choice(self._numbers[TASK])
        shares = {family: share for family, share in SHARES.items() if family in self._numbers}
        (family,) = self._rng.choices([*shares], [*shares.values()])
        return self._rng.choice(self._numbers[family])

    def one_step(self) -> Tensor:
        """One step; returns its loss."""
        options = self.options
        chosen = [self._pick() for _ in range(options.batch)]
        errors = self._network.errors(self._maker.batch(self._corpus, chosen))
        loss = torch.stack([error.sum() for error in errors]).sum() / sum(error.numel() for error in errors)
        loss.backward()
        scale = min(1.0, (self.step + 1) / (options.warmup + 1))
        if options.decay:
            scale *= min(1.0, (options.steps - self.step) / options.decay)
        self._optimizer.step(scale)
        self.step += 1
        kept = min(options.ema, self.step / (self.step + 9))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, [*self._optimizer.parameters], 1 - kept)
        return loss.detach()

    @torch.no_grad()
    def swap(self) -> None:
        """Averages for weights, or back."""
        for one, average in zip(self._optimizer.parameters, self.averages, strict=True):
            kept = one.detach().clone()
            one.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Mean squared error of the averages' guess at the clean latents, by family and noise level; 1 is no guess."""
        self.swap()
        found: dict[str, list[float]] = defaultdict(list)
        for copy, numbers in ((0.0, range(144)), (1.0, range(240, HELD_OUT))):
            rng, generator = random.Random(5), torch.Generator().manual_seed(5)  # noqa: S311
            maker = Maker(self._tokenizer, rng, generator, copy=copy)
            for first in range(0, len(numbers), 48):
                for level in LEVELS:
                    groups = maker.batch(self._corpus, numbers[first : first + 48], level=level)
                    for group, error in zip(groups, self._network.errors(groups), strict=True):
                        for family, one in zip(group.families, error.mean((1, 2)).tolist(), strict=True):
                            found[f"{family}@{level}"].append(one * level**2)
        self.swap()
        means = {name: sum(values) / len(values) for name, values in found.items()}
        for level in LEVELS:
            each = [value for name, value in means.items() if name.endswith(f"@{level}") and not name.startswith(COPY)]
            means[f"all@{level}"] = sum(each) / len(each)
        return means

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "model": self.model.state_dict(), "averages": self.averages, "optimizer": self._optimizer.state(),
            "step": self.step, "rng": self._rng.getstate(), "generator": self._generator.get_state(),
            "options": asdict(self.options),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load(state["optimizer"])
        with torch.no_grad():
            torch._foreach_copy_(self.averages, state["averages"])
        self.step = state["step"]
        self._rng.setstate(state["rng"])
        self._generator.set_state(state["generator"])


def _start(options: Options) -> SigmaModel:
    if not options.start:
        model = init_model(config(), seed=options.seed, dtype=torch.float32, device="cpu")
        prepare(model)
        return model
    where = preset_directory(options.start) if options.start in PRESETS else Path(options.start)
    return load_model(where, dtype=torch.float32, config=config())


def _save(training: Training, out: Path) -> None:
    temporary = out / f".{STATE}.tmp"
    torch.save(training.state(), temporary)
    temporary.rename(out / STATE)


def _export(training: Training, out: Path) -> None:
    training.swap()
    export_model(training.model, out / MODEL, dtype=torch.bfloat16, name="ema.safetensors")
    training.swap()
    for name in (VAE_FILE, *TOKENIZER_FILES):
        if (preset_directory("tiny") / name).exists():
            shutil.copy(preset_directory("tiny") / name, out / MODEL / name)


def _log(training: Training, out: Path, loss: float, seconds: float) -> None:
    figures = {"step": training.step, "samples": training.step * training.options.batch, "loss": loss}
    line = json.dumps({**figures, "seconds": round(seconds), **training.held_out()})
    lines = (out / LOG).read_text("utf-8") if (out / LOG).exists() else ""
    write_atomic(out / LOG, f"{lines}{line}\n")
    sys.stderr.write(f"{line}\n")


def main() -> None:
    """Draw what is missing, then train to the last step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, figures and the model")
    parser.add_argument("--data", type=Path, help="folder of drawn samples; by default OUT/data")
    for name, value in asdict(Options()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--draw", help="only draw samples: K/N draws the part K (from 0) of N, for N processes at once")
    given = parser.parse_args()
    options = Options(**{name: getattr(given, name) for name in asdict(Options())})
    out, data = given.out, given.data or given.out / "data"
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    root, settings = preset_directory("tiny"), config()
    tokenizer = Tokenizer.load(root, vocab_size=settings.language.vocab_size, rows=settings.rows)
    part, parts = map(int, (given.draw or "0/1").split("/"))
    draw(
        data, tokenizer, Vae.load(root / VAE_FILE, settings.vae), seed=SEED, count=options.samples, tasks=options.tasks,
        maps=options.maps, first=options.first, part=(part, parts),
    )  # fmt: skip
    if given.draw:
        return
    training = Training(options, tokenizer, load(data))
    if (out / STATE).exists():
        training.load(torch.load(out / STATE, weights_only=False))  # our own file
    else:
        _log(training, out, float("nan"), 0.0)
    begin = saved = time.monotonic()
    losses: list[float] = []
    while training.step < options.steps:
        losses.append(float(training.one_step()))
        if training.step % options.every == 0 or training.step == options.steps:
            _log(training, out, sum(losses) / len(losses), time.monotonic() - begin)
            losses.clear()
        if time.monotonic() - saved > options.save_s:
            _save(training, out)
            saved = time.monotonic()
    _save(training, out)
    _export(training, out)


if __name__ == "__main__":
    main()
