"""Does this code compute what the reference computes?

Checks any directory in the format of tests/golden (BAGEL), or of tests/golden_omnigen2 (OmniGen2, told by its
golden.json).

    python benchmarks/parity.py tests/golden

Every array of the directory is computed by sigma in float32 and compared; the largest error of each is
printed, and the exit code is 1 where one is past its tolerance (1e-4, relative 1e-3 for gradient norms).
Sizes come from the directory's JSON files, layer numbers from the names of the arrays.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from differences import Difference, error_of, norms_of, same
from parity_omnigen2 import PARTS as OMNIGEN2_PARTS
from parity_omnigen2 import compare_omnigen2
from reference import Delimiters, context, item, segments_of, sequence_order, training_batch, whole
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sigma_data.errors import SigmaError
from sigma_data.images.resize_rule import ResizeRule
from sigma_data.loading.batch import PackedBatch
from sigma_data.loading.collate import collate
from sigma_model.attention_mask import block_mask, dense_mask
from sigma_model.checkpoint_io import load_model, released_name
from sigma_model.config import VaeConfig
from sigma_model.model import widths
from sigma_model.sampling.cache import Cache, prefill
from sigma_model.sampling.context import Context
from sigma_model.sampling.sampler import sample_latents
from sigma_model.sampling.settings import Guidance, Rescale
from sigma_model.sampling.text_decoder import decode_text
from sigma_model.vae import Vae

PARTS = ("train.json", "inference.json", "vae.json", "resize.json")


def compare(directory: Path) -> Iterator[Difference]:
    """Every array and figure of a directory."""
    torch.manual_seed(0)
    if (directory / "golden.json").exists():
        yield from compare_omnigen2(directory)
        return
    if (directory / "train.json").exists():
        yield from compare_training(directory)
    if (directory / "inference.json").exists():
        yield from compare_inference(directory)
    if (directory / "vae.json").exists():
        yield from compare_vae(directory)
    if (directory / "resize.json").exists():
        yield from compare_resize(directory)


def compare_training(directory: Path) -> Iterator[Difference]:
    """Inputs, masks, hidden states, losses, gradients, gradient norms."""
    facts = json.loads((directory / "train.json").read_text())
    arrays = load_file(directory / "train.safetensors")
    batch = training_batch(directory)
    order = sequence_order(batch)
    model = load_model(directory, dtype=torch.float32)
    for number, (und, und_end, gen, gen_end) in enumerate(batch.spans):
        mine = torch.cat((torch.arange(und, und_end), torch.arange(gen, gen_end)))
        mine = mine[batch.tags.place[mine].argsort()]
        tags = type(batch.tags)(*(tag[mine] for tag in batch.tags))
        expected = arrays[f"mask.{number}"]
        yield same(f"mask.{number}", dense_mask(tags, group_mask=False), expected)
        yield same(f"mask.{number} (group mask, no attribute tokens)", dense_mask(tags, group_mask=True), expected)
    yield same("in.packed_position_ids", batch.positions[order], arrays["in.packed_position_ids"])
    yield from _compare_inputs(batch, order, arrays)
    blocks = block_mask(batch.runs, batch.tags, group_mask=True).to_dense()[0, 0]
    yield same("block mask covers the dense mask", blocks, _by_blocks(dense_mask(batch.tags, group_mask=True)))

    latents = model.clean_latents(batch, batch.known_latents)
    for freeze, norms in ((False, "grad_norms"), (True, "grad_norms_freeze_und")):
        model.zero_grad(set_to_none=True)
        model.freeze(und=freeze)
        out = model(batch, latents, timestep_shift=facts["timestep_shift"], hidden=not freeze)
        loss = out.ce.mean() + out.mse.mean()
        loss.backward()
        gradients = {released_name(name): p.grad for name, p in model.named_parameters()}
        if not freeze:
            hidden = torch.cat((out.und, out.gen))[order].detach()
            yield error_of("hidden", hidden, arrays["hidden"])
            yield error_of("mse", out.mse.detach(), arrays["mse"])
            yield error_of("ce", out.ce.detach(), arrays["ce"])
            yield error_of("loss", loss.detach().reshape(1), arrays["loss"])
            for name in arrays:
                if name.startswith("grad."):
                    gradient = gradients[name.removeprefix("grad.")]
                    assert gradient is not None
                    yield error_of(name, gradient, arrays[name])
        yield norms_of(norms, gradients, facts[norms])


def _compare_inputs(batch: PackedBatch, order: Tensor, arrays: Mapping[str, Tensor]) -> Iterator[Difference]:
    """What the batch brings, in the reference's packed order."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))  # place in the batch -> index in the reference's sequence
    by_text = rank[batch.text_slots].argsort()
    yield same("in.packed_text_ids", batch.text_ids[by_text], arrays["in.packed_text_ids"])
    yield same("in.packed_text_indexes", rank[batch.text_slots].sort().values, arrays["in.packed_text_indexes"])
    yield same("in.packed_vae_token_indexes", rank[batch.n_und :], arrays["in.packed_vae_token_indexes"])
    yield same("in.packed_vit_token_indexes", rank[batch.patch_slots], arrays["in.packed_vit_token_indexes"])
    yield error_of("in.packed_vit_tokens", batch.patches, arrays["in.packed_vit_tokens"])
    yield same("in.ce_loss_indexes", rank[batch.answer_slots], arrays["in.ce_loss_indexes"])
    yield same("in.packed_label_ids", batch.labels, arrays["in.packed_label_ids"])
    yield error_of("in.ce_loss_weights", batch.answer_weights, arrays["in.ce_loss_weights"])
    targets = rank[batch.n_und + batch.target_slots]
    yield same("in.mse_loss_indexes", targets, arrays["in.mse_loss_indexes"])
    yield same("in.packed_latent_position_ids", batch.latent_places, arrays["in.packed_latent_position_ids"])
    yield same("in.packed_vit_position_ids", batch.patch_places, arrays["in.packed_vit_position_ids"])
    lengths = torch.tensor([rows * columns for rows, columns in batch.patch_grids])
    yield same("in.vit_token_seqlens", lengths, arrays["in.vit_token_seqlens"])


def compare_inference(directory: Path) -> Iterator[Difference]:
    """Snapshots of the cache, latents under every guidance setting, greedy text."""
    facts = json.loads((directory / "inference.json").read_text())
    arrays = load_file(directory / "inference.safetensors")
    training = json.loads((directory / "train.json").read_text())
    delimiters = Delimiters.of(training["special_ids"])
    model = load_model(directory, dtype=torch.float32).requires_grad_(False)
    stages = {match[1] for name in arrays if (match := re.match(r"ctx\.(\w+)\.len_rope", name))}
    for stage in sorted(stages):
        length = int(arrays[f"ctx.{stage}.len_rope"][0])
        segments = whole(facts["context_order"], arrays, model.config, length)
        end = torch.tensor([sum(s.length for s in segments), segments[-1].end])
        yield same(f"ctx.{stage}.len_rope", end, arrays[f"ctx.{stage}.len_rope"])
        cache = Cache(model.config.language, [length], dtype=torch.float32, device="cpu")
        prefill(
            model,
            collate([item(segments, arrays, model.config)], delimiters, widths(model.config)),
            cache,
            group_mask=True,
        )
        for name, expected in arrays.items():
            if match := re.fullmatch(rf"ctx\.{stage}\.([kv])(\d+)", name):
                kept = cache.keys if match[1] == "k" else cache.values
                yield error_of(name, kept[int(match[2])][:length], expected)

    height, width = facts["target_shape_hw"]
    stride = training["latent"]["downsample"] * training["latent"]["latent_patch_size"]  # not of the VAE beside it
    grid = (height // stride, width // stride)
    for case, setting in facts["cases"].items():
        contexts = [
            context(facts[name], arrays, model.config, grid)
            for name in ("context_order", "text_dropped_context", "image_dropped_context")
        ]
        found = sample_latents(
            model,
            [contexts],
            [arrays["in.init_noise"]],
            delimiters,
            steps=setting["num_timesteps"],
            timestep_shift=setting["timestep_shift"],
            guidance=Guidance(
                text=setting["cfg_text_scale"],
                image=setting["cfg_img_scale"],
                interval=tuple(setting.get("cfg_interval", (0.0, 1.0))),
                rescale=Rescale(setting.get("cfg_renorm_type", "text_channel")),
                rescale_min=setting.get("cfg_renorm_min", 0.0),
            ),
        )
        yield error_of(f"out.{case}", found[0], arrays[f"out.{case}"])
    segments = segments_of(facts["text_context"], arrays, model.config)
    question = Context(segments, item(segments, arrays, model.config))
    greedy = arrays["text.greedy"]
    ids = decode_text(model, [question], delimiters, max_tokens=len(greedy) - 1)[0]
    yield same("text.greedy", torch.tensor([delimiters.bos, *ids]), greedy)


def compare_vae(directory: Path) -> Iterator[Difference]:
    """The autoencoder both ways."""
    facts = json.loads((directory / "vae.json").read_text())
    arrays = load_file(directory / "vae_io.safetensors")
    config = VaeConfig(
        ch=facts["ch"],
        mult=tuple(facts["ch_mult"]),
        num_res_blocks=facts["num_res_blocks"],
        z_channels=facts["z_channels"],
        scale_factor=facts["scale_factor"],
        shift_factor=facts["shift_factor"],
    )
    vae = Vae.load(directory / "ae.safetensors", config)
    yield error_of("vae z_mean_scaled", torch.stack(vae.encode(list(arrays["x"]))), arrays["z_mean_scaled"])
    yield error_of("vae decoded", torch.stack(vae.decode(list(arrays["z_mean_scaled"]))), arrays["decoded"])


def compare_resize(directory: Path) -> Iterator[Difference]:
    """The resize rule, case by case."""
    for name, group in json.loads((directory / "resize.json").read_text()).items():
        rule = ResizeRule(**group["rule"])
        wrong = sum(
            rule.size(case["width"], case["height"], images=case["img_num"]) != (case["out_width"], case["out_height"])
            for case in group["cases"]
        )
        yield Difference(f"resize {name}: wrong of {len(group['cases'])} cases", float(wrong), 0.0)


def _by_blocks(mask: Tensor, block: int = 128) -> Tensor:
    """1 where a block of a dense mask has any True."""
    blocks = -(-len(mask) // block)
    padded = torch.zeros(blocks * block, blocks * block, dtype=torch.bool)
    padded[: len(mask), : len(mask)] = mask
    return padded.reshape(blocks, block, blocks, block).any(3).any(1).int()


def main() -> int:
    """Print the table; 1 where something differs."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("usage: python benchmarks/parity.py DIRECTORY")
        return 2
    directory = Path(sys.argv[1])
    parts = OMNIGEN2_PARTS if (directory / "golden.json").exists() else PARTS
    absent = [name for name in parts if not (directory / name).exists()]
    try:
        found = list(compare(directory))
    except (SigmaError, OSError, ValueError, KeyError, SafetensorError) as error:
        print(f"{directory}: is not whole, or not of this format ({type(error).__name__}: {error})")
        return 2
    for difference in found:
        mark = "ok  " if difference.passes else "FAIL"
        print(f"{mark} {difference.error:10.3g}  (at most {difference.tolerance:g})  {difference.name}")
    failed = sum(not difference.passes for difference in found)
    print(f"{len(found)} compared, {failed} past tolerance" if found else "nothing to compare was found")
    if absent:
        print(f"not compared, for they are not there: {', '.join(absent)}")
    return int(failed > 0 or not found)


if __name__ == "__main__":
    sys.exit(main())
