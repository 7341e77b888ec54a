"""Fresh weights: a function of seed and name, the identity on latents, attention to what is alike."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sigma_model.checkpoint_io import init_model
from sigma_model.config import preset
from sigma_model.embed import sincos_table
from sigma_model.initialization import fresh_tensor

TINY = preset("tiny")


def same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def test_initialisation_is_a_function_of_the_seed_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = init_model(preset("tiny"), seed=11).state_dict()
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        again = init_model(preset("tiny"), seed=11).state_dict()
    other = init_model(preset("tiny"), seed=12).state_dict()
    assert all(same_bytes(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_initialisation_draws_the_same_numbers_in_another_type_and_without_vision() -> None:
    whole = init_model(preset("tiny"), seed=4).state_dict()
    config = preset("tiny").model_copy(update={"vision": None})
    part = init_model(config, seed=4, dtype=torch.bfloat16).state_dict()
    assert 0 < len(part) < len(whole)
    assert all(same_bytes(tensor, whole[name].to(torch.bfloat16)) for name, tensor in part.items())


def test_a_fresh_model_has_normal_weights_unit_norms_and_zero_biases() -> None:
    config = TINY.model_copy(update={"attribute_projection": True})
    model = init_model(config, seed=0)
    assert config.vision is not None
    width = config.language.hidden_size
    random = []
    for name, tensor in model.state_dict().items():
        if name == "latent_positions":
            assert torch.equal(tensor, sincos_table(config.latent.grid, width))
        elif name == "patch_positions":
            assert torch.equal(tensor, sincos_table(config.vision.grid, width))
        elif name.endswith(".bias") or name == "attribute_projection.weight":
            assert not tensor.any(), name
        elif "norm" in name:
            assert bool((tensor == 1).all()), name
        elif not name.startswith("latent_"):
            embedding = name in ("backbone.embed.weight", "vision.position_embedding.weight")
            std = 0.02 if embedding else 1 / math.sqrt(tensor.shape[1])
            assert abs(tensor.mean()) < 0.05 * std and abs(tensor.std() / std - 1) < 0.05, name
            if not (name.startswith("backbone.layers") and name.endswith((".q.weight", ".k.weight"))):
                random.append(tensor.flatten()[:1000])
    assert len({tuple(values.tolist()) for values in random}) == len(random)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_queries_start_as_the_keys_of_their_group_in_both_experts_and_layers_differ() -> None:
    state = init_model(TINY, seed=3).state_dict()
    language = TINY.language
    times = language.num_attention_heads // language.num_key_value_heads
    for layer in range(language.num_hidden_layers):
        keys = state[f"backbone.layers.{layer}.gen.k.weight"].view(-1, language.head_dim, language.hidden_size)
        for expert in ("und", "gen"):
            at = f"backbone.layers.{layer}.{expert}"
            assert torch.equal(state[f"{at}.k.weight"].view_as(keys), keys)
            queries = state[f"{at}.q.weight"].view(-1, times, language.head_dim, language.hidden_size)
            assert all(torch.equal(queries[:, one], keys) for one in range(times))
    assert not torch.equal(state["backbone.layers.0.gen.k.weight"], state["backbone.layers.1.gen.k.weight"])


def test_latents_pass_through_the_ends_of_the_network_as_they_are() -> None:
    model = init_model(TINY, seed=1)
    latents = torch.randn(64, TINY.latent.features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = model.latent_in(latents) + model.latent_positions[:64]
        back = model.latent_out(model.backbone.norm_gen(hidden))
    assert hidden.square().mean().item() == pytest.approx(1.5, rel=0.1)
    # What is left is the table of positions, seen through the same columns.
    assert (back - latents).square().mean() < 0.2
    assert torch.nn.functional.cosine_similarity(back, latents).min() > 0.85


@pytest.mark.parametrize("features", [8, 128, 200])
def test_the_ends_of_the_network_take_any_number_of_features(features: int) -> None:
    into, out = (
        fresh_tensor(TINY, f"latent_{end}.weight", torch.Size(shape), seed=0)
        for end, shape in (("in", (128, features)), ("out", (features, 128)))
    )
    kept = min(128, features)
    identity = torch.zeros(features, features)
    identity[:kept, :kept] = torch.eye(kept) * math.sqrt(1.5)
    torch.testing.assert_close(out @ into, identity, atol=1e-5, rtol=0)
