"""Parity with OmniGen2: a directory with `golden.json`, compared by benchmarks/parity.py.

Sizes, samples, guidance, solvers and caches are those that the directory's JSON files say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from differences import Difference, error_of, norms_of, same
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from sigma_model.attention import Backend
from sigma_model.omnigen2.checkpoint import check_fit, empty_transformer, load_transformer
from sigma_model.omnigen2.conditioning import MllmInputs, answer_loss, hidden_states, load_mllm, text_states
from sigma_model.omnigen2.config import TransformerConfig
from sigma_model.omnigen2.flow import FlowTarget, TimeShift, flow_loss, mixture, sampling_times, training_time
from sigma_model.omnigen2.images import SizeRule, pixels
from sigma_model.omnigen2.lora import load_adapter, merge_adapter
from sigma_model.omnigen2.pack import DiffusionSample, image_tokens, layout_of
from sigma_model.omnigen2.prompts import DEFAULT_NEGATIVE, chat_text, dropped_text, generation_text
from sigma_model.omnigen2.sampler import SamplingRequest, Step, sample
from sigma_model.omnigen2.settings import Omnigen2Sampling, StepCacheKind
from sigma_model.omnigen2.transformer import Omnigen2Transformer, rotary, times_of
from sigma_model.sampling.settings import Solver

PARTS = ("golden.json", "grad_norms.json", "lora", "mllm", "prompts.json", "released_keys.json", "resize.json")

Arrays = Mapping[str, Tensor]


class Golden:
    """The files of a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.facts: dict[str, Any] = json.loads((directory / "golden.json").read_text())
        self.given = load_file(directory / "inputs.safetensors")
        self.wanted = load_file(directory / "outputs.safetensors")

    def model(self) -> Omnigen2Transformer:
        """The transformer in float32."""
        return load_transformer(self.directory / "transformer")

    def references(self, name: str, count: int) -> tuple[Tensor, ...]:
        """The reference latents of one sample."""
        return tuple(self.given[f"{name}.ref.{number}"] for number in range(count))

    def samples(self, case: str) -> list[DiffusionSample]:
        """Of a forward case."""
        return [
            DiffusionSample(
                self.given[f"{case}.{number}.text"],
                self.given[f"{case}.{number}.latent"],
                self.given[f"{case}.{number}.t"],
                self.references(f"{case}.{number}", count),
            )
            for number, count in enumerate(self.facts["forward"][case]["refs"])
        ]

    def error(self, name: str, found: Tensor) -> Iterator[Difference]:
        """Against the array of this name; none where a directory leaves it out."""
        if name in self.wanted:
            wanted = self.wanted[name]
            exact = not wanted.is_floating_point()
            yield same(name, found, wanted) if exact else error_of(name, found.detach(), wanted)


def compare_omnigen2(directory: Path) -> Iterator[Difference]:
    """Every array and figure of a directory; an array that nothing here computes fails."""
    golden = Golden(directory)
    compared = set()
    for difference in _all(golden, directory):
        compared.add(difference.name.split(" (")[0].split(": shape")[0])
        yield difference
    for name in sorted(golden.wanted.keys() - compared):
        yield Difference(f"{name}: not compared", float("inf"), 0.0)


def _all(golden: Golden, directory: Path) -> Iterator[Difference]:
    yield from compare_forward(golden)
    yield from compare_training(golden)
    yield from compare_sampling(golden)
    yield from compare_times(golden)
    yield from compare_images(golden)
    if (directory / "lora").is_dir():
        yield from compare_lora(golden)
    if (directory / "mllm").is_dir():
        yield from compare_mllm(golden)
    if (directory / "prompts.json").exists():
        yield from compare_prompts(golden)
    if (directory / "released_keys.json").exists():
        yield compare_released(directory)


@torch.no_grad()
def compare_forward(golden: Golden) -> Iterator[Difference]:
    """Every stage of every case; padded to the right and to the left, and one by one, the velocities again."""
    model = golden.model()
    config = model.config
    for case in golden.facts["forward"]:
        samples = golden.samples(case)
        yield from _stages(golden, model, case, samples)
        alone = [model([one])[0] for one in samples]
        for number, velocity in enumerate(alone):
            wanted = golden.wanted[f"{case}.{number}.velocity"]
            yield error_of(f"{case}.{number}.velocity (alone)", velocity, wanted)
    for axis, width in enumerate(config.axes_dim_rope):
        if (name := f"rope_table.{axis}.cos") in golden.wanted:
            positions = torch.arange(len(golden.wanted[name]))[:, None]
            cosine, sine = rotary(positions, (width,))
            yield from golden.error(name, cosine[:, 0])
            yield from golden.error(f"rope_table.{axis}.sin", sine[:, 0])


def _stages(
    golden: Golden, model: Omnigen2Transformer, case: str, samples: list[DiffusionSample]
) -> Iterator[Difference]:
    """Of one pack, cut into its samples and references."""
    frame = model.frame([layout_of(one, model.config) for one in samples], backend=Backend.SDPA)
    pack = frame.pack
    kept: dict[str, Tensor] = {}
    text = model.embed_text(torch.cat([one.text for one in samples]), frame, kept.__setitem__)
    references = image_tokens([one for each in samples for one in each.references], model.config, text)
    targets = image_tokens([one.latent for one in samples], model.config, text)
    time = model.embed_time(times_of(samples, model.device))
    refined = model.embed_images(references, targets, time, frame, kept.__setitem__)
    joint = pack.joint_of(text, *refined)
    last = model.stack(joint, time, frame, kept.__setitem__)
    kept |= {"joint_in": joint, "norm_out": model.norm_out(last, time, frame.joint_owner)}
    kept["position_ids"] = pack.joint_of(pack.text_positions, pack.reference_positions, pack.target_positions)
    kept["rope_cos"], kept["rope_sin"] = (one[:, 0] for one in frame.joint_turn)
    lengths = {"text": pack.text_lengths, "image": pack.target_lengths, "joint": pack.lengths}
    owners = [number for number, layout in enumerate(pack.layouts) for _ in layout.references]
    for stage, value in kept.items():
        if stage.startswith("references."):
            for at, (owner, part) in enumerate(zip(owners, value.split(pack.reference_lengths), strict=True)):
                inside = at - owners.index(owner)
                yield from golden.error(f"{case}.{owner}.ref.{inside}.{stage.removeprefix('references.')}", part)
            continue
        of_text = stage.startswith(("text_", "context_"))
        kind = "text" if of_text else "image" if stage.startswith(("x_", "noise_")) else "joint"
        for number, part in enumerate(value.split(lengths[kind])):
            yield from golden.error(f"{case}.{number}.{stage}", part)
    for number, (embedded, velocity) in enumerate(zip(time, model(samples), strict=True)):
        yield from golden.error(f"{case}.{number}.temb", embedded)
        yield from golden.error(f"{case}.{number}.velocity", velocity)


def compare_training(golden: Golden) -> Iterator[Difference]:
    """Mixtures, predictions, losses, gradients, gradient norms."""
    path = golden.directory / "grad_norms.json"
    norms = json.loads(path.read_text()) if path.exists() else {}
    for case, facts in golden.facts["train"].items():
        model = golden.model()
        targets = []
        for number, count in enumerate(facts["refs"]):
            name = f"{case}.{number}"
            data, noise, time = (golden.given[f"{name}.{part}"] for part in ("x1", "x0", "t"))
            text = golden.given[f"{name}.text"].clone().requires_grad_()
            targets.append(FlowTarget(data, noise, time, text, golden.references(name, count)))
        out = flow_loss(model, targets)
        out.mean.backward()
        yield from golden.error(f"{case}.loss", out.mean)
        for number, one in enumerate(targets):
            name = f"{case}.{number}"
            yield from golden.error(f"{name}.xt", mixture(one.data, one.noise, one.time))
            yield from golden.error(f"{name}.pred", out.velocities[number])
            # A sum of thousands in float32 is itself no closer than its last bit, 5e-4: so relative to its size.
            if (sum_name := f"{name}.sq_error_sum") in golden.wanted:
                wanted = golden.wanted[sum_name]
                found = out.squared_errors[number].detach() / wanted
                yield error_of(f"{sum_name} (relative)", found, torch.ones_like(wanted))
            assert one.text.grad is not None
            yield from golden.error(f"{name}.grad_text", one.text.grad)
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        for name in golden.wanted:
            if name.startswith(f"{case}.grad."):
                gradient = gradients[name.removeprefix(f"{case}.grad.")]
                assert gradient is not None
                yield from golden.error(name, gradient)
        if case in norms:
            yield norms_of(f"{case} gradient norms", gradients, norms[case])


def compare_sampling(golden: Golden) -> Iterator[Difference]:
    """Every setting: times, velocities of the branches and guided, latents, how often the model ran."""
    model = golden.model().requires_grad_(False)
    for case, facts in golden.facts["sample"].items():
        requests = [
            SamplingRequest(
                golden.given[f"{case}.{number}.text"],
                golden.given[f"{case}.{number}.negative"],
                golden.given[f"{case}.{number}.noise"],
                golden.references(f"{case}.{number}", count),
            )
            for number, count in enumerate(facts["refs"])
        ]
        settings = Omnigen2Sampling(
            steps=facts["steps"],
            text_scale=facts["text_guidance"],
            image_scale=facts["image_guidance"],
            interval=tuple(facts["cfg_range"]),
            sampler=Solver(facts["solver"]),
            cache=StepCacheKind(facts["cache"]) if facts.get("cache") else None,
            threshold=facts.get("threshold", Omnigen2Sampling.threshold),
        )
        steps: list[Step] = []
        final = sample(model, requests, settings, watch=steps.append)
        times = sampling_times(settings.steps, *requests[0].noise.shape[1:])
        yield from golden.error(f"{case}.timesteps", torch.tensor(times[:-1]))
        yield from golden.error(f"{case}.trajectory", torch.stack([torch.stack(one.latents) for one in steps]))
        guided = torch.stack([torch.stack(one.velocities) for one in steps])
        yield from golden.error(f"{case}.guided_velocity", guided)
        raw = torch.stack([torch.stack(one) for one in steps[0].branches])
        yield from golden.error(f"{case}.raw_velocity_step0", raw)
        yield from golden.error(f"{case}.final", torch.stack(final))
        calls = [len(one.branches) for one in steps]
        yield same(f"{case} model calls per step", torch.tensor(calls), torch.tensor(facts["model_calls_per_step"]))
        if "computed_calls" in facts:
            ran = [ran for one in steps for ran in one.computed]
            yield same(
                f"{case} computed calls", torch.tensor(ran).nonzero()[:, 0], torch.tensor(facts["computed_calls"])
            )


def compare_times(golden: Golden) -> Iterator[Difference]:
    """Training times of given draws under both shifts, and the times of sampling."""
    u = golden.given.get("time.u")
    for name in golden.wanted:
        if u is not None and (match := re.fullmatch(r"time\.train\.(v\d)\.(dynamic|static\d*)\.(\d+)x(\d+)", name)):
            patch = golden.facts["config"]["patch_size"]
            tokens = int(match[3]) * int(match[4]) // patch**2
            if match[2] != "dynamic":
                tokens = int(match[2].removeprefix("static"))
            yield from golden.error(name, training_time(u, tokens, shift=TimeShift(match[1])))
        elif match := re.fullmatch(r"time\.schedule\.(\d+)\.(?:noshift|(\d+)x(\d+))", name):
            shifted = match[2] is not None
            sides = (int(match[2]), int(match[3])) if shifted else (1, 1)
            yield from golden.error(name, torch.tensor(sampling_times(int(match[1]), *sides, dynamic=shifted)))


def compare_images(golden: Golden) -> Iterator[Difference]:
    """The size rule, case by case, and pixels after it: exact."""
    path = golden.directory / "resize.json"
    if path.exists():
        cases = json.loads(path.read_text())
        wrong = sum(
            SizeRule(case["max_pixels"], case["max_side_length"]).size(case["width"], case["height"])
            != (case["new_width"], case["new_height"])
            for case in cases
        )
        yield Difference(f"resize: wrong of {len(cases)} cases", float(wrong), 0.0)
    for number, limits in enumerate(golden.facts.get("pixels", [])):
        image = Image.fromarray(golden.given[f"pixels.{number}.image"].numpy())
        yield from golden.error(f"pixels.{number}.tensor", pixels(image, SizeRule(*limits)))


@torch.no_grad()
def compare_lora(golden: Golden) -> Iterator[Difference]:
    """The adapter applied, and merged into the weights."""
    facts = golden.facts["lora"]
    for how in ("applied", "merged"):
        model = golden.model()
        load_adapter(model, golden.directory / "lora", alpha=facts["alpha"])
        if how == "merged":
            merge_adapter(model)
        for number, velocity in enumerate(model(golden.samples(facts["case"]))):
            wanted = golden.wanted[name := f"lora.{facts['case']}.{number}.velocity"]
            yield error_of(name if how == "applied" else f"{name} (merged)", velocity, wanted)


@torch.no_grad()
def compare_mllm(golden: Golden) -> Iterator[Difference]:
    """States of the language model with images and without, padding on either side, and the loss of answers."""
    mllm = load_mllm(golden.directory / "mllm")
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
    inputs = MllmInputs(*(golden.given[f"mllm.{name}"] for name in names))
    yield from golden.error("mllm.last_hidden", hidden_states(mllm, inputs))
    states = text_states(mllm, inputs, keep_image_states=False)
    length = golden.wanted["mllm.packed"].shape[1]
    padded = [torch.nn.functional.pad(one, (0, 0, 0, length - len(one))) for one in states]
    mask = torch.tensor([[1] * len(one) + [0] * (length - len(one)) for one in states])
    yield same("mllm.packed_mask", mask, golden.wanted["mllm.packed_mask"])
    # What the reference leaves in rows of padding is of no meaning.
    yield error_of("mllm.packed", torch.stack(padded), golden.wanted["mllm.packed"] * mask[..., None])
    ids, mask = (golden.given[f"mllm.text.{name}"] for name in ("input_ids", "attention_mask"))
    yield from golden.error("mllm.text.last_hidden", hidden_states(mllm, MllmInputs(ids, mask, torch.zeros_like(ids))))
    for number, (row, kept) in enumerate(zip(ids, mask.bool(), strict=True)):
        left = torch.cat((row[~kept], row[kept]))[None]
        alone = hidden_states(mllm, MllmInputs(left, kept.sort().values[None].long(), torch.zeros_like(left)))
        wanted = golden.wanted["mllm.text.last_hidden"][number][kept]
        yield error_of(f"mllm.text.last_hidden.{number} (left-padded)", alone[0, -len(wanted) :], wanted)
    total, count = answer_loss(mllm, inputs, golden.given["mllm.labels"])
    yield from golden.error("mllm.sft_loss", total / count)


def compare_prompts(golden: Golden) -> Iterator[Difference]:
    """The text of every template, exact; ids where the directory has a tokenizer."""
    facts = json.loads((golden.directory / "prompts.json").read_text())
    words = golden.directory / "processor"
    tokenizer = AutoTokenizer.from_pretrained(words, local_files_only=True) if words.is_dir() else None
    yield _equal("default negative prompt", DEFAULT_NEGATIVE, facts["default_negative"])
    for number, case in enumerate(facts["cases"]):
        kind, user = case["kind"], case["user"]
        if kind == "dropped_prompt_training":
            found = dropped_text(as_negative=False)
        elif kind == "generation":
            found = generation_text(user)
        else:
            images = int(match[1]) if (match := re.fullmatch(r"chat_(\d+)_images", kind)) else 1
            found = chat_text(user, images)
        yield _equal(f"prompt {number} ({kind})", found, case["text"])
        if tokenizer is not None:
            ids = tokenizer(found, add_special_tokens=False)["input_ids"]
            yield _equal(f"prompt {number} ({kind}) ids", ids, case["ids"])


def compare_released(directory: Path) -> Difference:
    """Names and shapes of the released size, both ways, on the meta device."""
    facts = json.loads((directory / "released_keys.json").read_text())
    model = empty_transformer(TransformerConfig.from_values(facts["config"], directory / "released_keys.json"))
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    check_fit(ours, facts["names"], where=str(directory))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    wrong = abs(parameters - facts["parameters"]) + abs(len(ours) - facts["tensors"])
    return Difference(f"released names and shapes ({len(ours)})", float(wrong), 0.0)


def _equal(name: str, found: object, wanted: object) -> Difference:
    return Difference(name, float(found != wanted), 0.0)
