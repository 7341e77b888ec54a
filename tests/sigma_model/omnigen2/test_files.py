"""Released and SGT-Gen2 directories load strictly; what is written loads again; adapters too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import omnigen2

from sigma_data.errors import ConfigError
from sigma_model.omnigen2.checkpoint import export_transformer, init_transformer, load_transformer
from sigma_model.omnigen2.files import WEIGHTS, find_omnigen2, is_omnigen2
from sigma_model.omnigen2.flow import FlowTarget, flow_loss
from sigma_model.omnigen2.lora import (
    LORA_FILE,
    adapted_layers,
    add_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A directory in the released layout; its parts but for the transformer are empty shells."""
    root = tmp_path / "OmniGen2"
    export_transformer(omnigen2.model(), root / "transformer")
    for part, file in (("mllm", "config.json"), ("vae", "config.json"), ("processor", "tokenizer_config.json")):
        (root / part).mkdir()
        (root / part / file).write_text("{}")
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text('{"dynamic_time_shift": false}')
    return root


def test_a_released_directory_is_told_and_its_parts_are_found(released: Path, tmp_path: Path) -> None:
    found = find_omnigen2(released)
    assert is_omnigen2(released)
    assert not is_omnigen2(tmp_path / "nowhere")
    assert (found.transformer, found.mllm, found.processor) == tuple(
        released / part for part in ("transformer", "mllm", "processor")
    )
    assert found.dynamic_time_shift is False
    with pytest.raises(ConfigError, match="no processor/: name OmniGen2's released directory as its base"):
        find_omnigen2(Path(shutil.copytree(released / "transformer", tmp_path / "alone"))).need("processor")


def test_sgt_gen2_is_found_one_level_down_and_its_text_encoder_is_used(released: Path, tmp_path: Path) -> None:
    for inner in ("transformer/transformer", "transformer"):
        sgt = tmp_path / inner.replace("/", "_") / "SGT-Gen2"
        shutil.copytree(released / "transformer", sgt / inner)
        (sgt / inner).parent.joinpath("text_encoder").mkdir()
        ((sgt / inner).parent / "text_encoder" / "config.json").write_text("{}")
        found = find_omnigen2(sgt, base=released)
        assert found.transformer == sgt / inner
        assert found.mllm == (sgt / inner).parent / "text_encoder"
        assert found.vae == released / "vae"


def test_a_transformer_is_the_same_after_export_whole_or_in_shards(released: Path, tmp_path: Path) -> None:
    model = load_transformer(released / "transformer")
    export_transformer(model, tmp_path / "shards", shard_bytes=20_000)
    index = json.loads((tmp_path / "shards" / f"{WEIGHTS}.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert index["weight_map"].keys() == model.state_dict().keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in model.state_dict().values())
    again = load_transformer(tmp_path / "shards")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    half = load_transformer(released / "transformer", dtype=torch.bfloat16)
    export_transformer(half, tmp_path / "half")
    assert load_transformer(tmp_path / "half").x_embedder.weight.dtype == torch.float32


def test_the_golden_checkpoint_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    source = omnigen2.GOLDEN / "transformer"
    export_transformer(load_transformer(source), tmp_path / "again")
    name = f"{WEIGHTS}.safetensors"
    before, after = load_file(source / name), load_file(tmp_path / "again" / name)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[one], after[one]) for one in before)
    values = [json.loads((one / "config.json").read_text()) for one in (source, tmp_path / "again")]
    assert {k: v for k, v in values[0].items() if k != "_diffusers_version"} == values[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [("missing", "1 tensor missing: x_embedder.bias"), ("unexpected", "1 tensor unexpected: more"),
     ("shape", "1 tensor of another shape: x_embedder.bias is"), ("int", "stored as I32")],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_name(released: Path, change: str, words: str) -> None:
    path = released / "transformer" / f"{WEIGHTS}.safetensors"
    weights = load_file(path)
    bias = weights["x_embedder.bias"]
    if change == "missing":
        del weights["x_embedder.bias"]
    elif change == "unexpected":
        weights["more"] = bias.clone()
    else:
        weights["x_embedder.bias"] = bias[:3] if change == "shape" else bias.int()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    with pytest.raises(ConfigError, match=words):
        load_transformer(released / "transformer")


def test_shards_that_are_not_whole_or_not_one_set_are_refused(released: Path, tmp_path: Path) -> None:
    export_transformer(load_transformer(released / "transformer"), tmp_path / "a", shard_bytes=40_000)
    first = sorted((tmp_path / "a").glob("*.safetensors"))[0]
    with pytest.raises(ConfigError, match="holds .* choose another folder"):
        export_transformer(load_transformer(tmp_path / "a"), tmp_path / "a")
    first.unlink()
    with pytest.raises(ConfigError, match="which is not there"):
        load_transformer(tmp_path / "a")
    (tmp_path / "a" / f"{WEIGHTS}.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match="no index"):
        load_transformer(tmp_path / "a")


def test_a_fresh_transformer_outputs_zero_and_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = init_transformer(omnigen2.CONFIG, seed=3)
    second = init_transformer(omnigen2.CONFIG, seed=3)
    assert not first([omnigen2.sample(1)])[0].any()
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert not torch.equal(first.x_embedder.weight, init_transformer(omnigen2.CONFIG, seed=4).x_embedder.weight)


def adapted(seed: int = 1, alpha: float | None = None) -> torch.nn.Module:
    model = omnigen2.model()
    add_adapter(model, rank=3, alpha=alpha, seed=seed)
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            layer.lora_B.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_an_adapter_written_and_read_or_merged_computes_the_same(tmp_path: Path, alpha: float | None) -> None:
    model = adapted(alpha=alpha)
    samples = [omnigen2.sample(1, references=[(2, 2)])]
    with torch.no_grad():
        wanted = model(samples)[0]
        path = save_adapter(model, tmp_path / "adapter")
        other = omnigen2.model()
        plain = other(samples)[0]
        load_adapter(other, tmp_path / "adapter")
        torch.testing.assert_close(other(samples)[0], wanted, atol=1e-5, rtol=1e-5)
        merge_adapter(other)
        torch.testing.assert_close(other(samples)[0], wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain, wanted)
    assert not list(adapted_layers(other))
    # The adapter alone, not the model.
    names = set(load_file(path))
    assert len(names) == 2 * len(list(adapted_layers(model))) == 2 * 4 * 5
    assert all(name.startswith("transformer.") and ".attn." in name for name in names)


def test_a_new_adapter_changes_nothing_and_trains_alone() -> None:
    model, plain = omnigen2.model(), omnigen2.model()
    add_adapter(model, rank=2)
    with torch.no_grad():
        assert torch.equal(model([omnigen2.sample(1)])[0], plain([omnigen2.sample(1)])[0])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)


def test_community_names_are_read_and_foreign_files_are_refused(tmp_path: Path) -> None:
    model = adapted()
    tensors = load_file(save_adapter(model, tmp_path))
    renamed = {
        name.removeprefix("transformer.").replace(".weight", ".default.weight"): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, tmp_path / "community.safetensors")
    other = omnigen2.model()
    load_adapter(other, tmp_path / "community.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(other([omnigen2.sample(1)])[0], model([omnigen2.sample(1)])[0])
    first = "transformer.layers.0.attn.to_q.lora_A.weight"
    for change, words in (
        ({"transformer.nowhere.lora_A.weight": tensors[first].clone()}, "1 tensor unexpected"),
        ({first: tensors[first][:, :3].contiguous()}, "the layer is"),
        ({"layers.0.attn.to_q.lora_A.weight": tensors[first].clone()}, "twice"),
    ):
        save_file(tensors | change, tmp_path / LORA_FILE)
        with pytest.raises(ConfigError, match=words):
            load_adapter(omnigen2.model(), tmp_path)
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, tmp_path / LORA_FILE)
    with pytest.raises(ConfigError, match="one side alone"):
        load_adapter(omnigen2.model(), tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        load_adapter(omnigen2.model(), tmp_path / "nowhere")


def test_gradients_of_micro_batches_average_and_do_not_add_up() -> None:
    """Three micro-batches of gradient 2 are 2, not 6; a large target weighs as its share of elements."""
    model = omnigen2.model()
    targets = []
    for seed, grid in enumerate([(2, 2), (4, 5), (1, 3)]):
        made = omnigen2.sample(seed, target=grid)
        targets.append(FlowTarget(made.latent, omnigen2.latent(seed + 9, *grid), made.time, made.text))
    flow_loss(model, targets).mean.backward()
    whole = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    elements = sum(one.data.numel() for one in targets)
    for one in targets:
        (flow_loss(model, [one]).squared_errors.sum() / elements).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], atol=1e-5, rtol=1e-4)
