"""A pack gives every sample what it gets alone, and what cannot be computed is one clear message."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import omnigen2

from sigma_data.errors import ConfigError
from sigma_model.omnigen2.config import TransformerConfig
from sigma_model.omnigen2.pack import DiffusionSample, lay_out, layout_of
from sigma_model.omnigen2.transformer import time_features, times_of

MODEL = omnigen2.model()
grids = st.tuples(st.integers(1, 5), st.integers(1, 5))
samples = st.builds(
    omnigen2.sample,
    st.integers(0, 1000),
    text=st.integers(1, 9),
    target=grids,
    references=st.lists(grids, max_size=5),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(st.lists(samples, min_size=1, max_size=4))
def test_packed_padded_on_either_side_and_one_by_one_are_the_same(found: list[DiffusionSample]) -> None:
    padded = omnigen2.script("padded_omnigen2")
    with torch.no_grad():
        packed = MODEL(found)
        others = [
            [MODEL([one])[0] for one in found],
            padded.padded_velocities(MODEL, found),
            padded.padded_velocities(MODEL, found, left=True),
        ]
    for other in others:
        for mine, theirs in zip(packed, other, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=10)
@given(st.lists(samples, min_size=1, max_size=3))
def test_positions_follow_the_formula_sample_by_sample(found: list[DiffusionSample]) -> None:
    layouts = [layout_of(one, omnigen2.CONFIG) for one in found]
    pack = lay_out(layouts, omnigen2.CONFIG)
    joint = pack.joint_of(pack.text_positions, pack.reference_positions, pack.target_positions)
    wanted = []
    for layout in layouts:
        wanted += [[place] * 3 for place in range(layout.text)]
        start = layout.text
        for rows, columns in (*layout.references, layout.target):
            wanted += [[start, row, column] for row in range(rows) for column in range(columns)]
            start += max(rows, columns)
    assert joint.tolist() == wanted


def test_a_sample_gets_no_gradient_from_another_sample() -> None:
    first, second = omnigen2.sample(1, references=[(2, 2)]), omnigen2.sample(9, references=[(3, 1), (1, 1)])
    text = second.text.clone().requires_grad_()
    moved = DiffusionSample(text, second.latent, second.time, second.references)
    (gradient,) = torch.autograd.grad(MODEL([first, moved])[0].sum(), text, allow_unused=True)
    assert gradient is None or not gradient.any()


def test_every_parameter_has_a_gradient_without_references_too() -> None:
    """Ranks of a sharded model must all reduce the same parameters."""
    model = omnigen2.model()
    model([omnigen2.sample(1)])[0].square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"references": [(1, 1)] * 6}, "6 reference images: OmniGen2 takes at most 5"),
        ({"text": 0}, "at least one token"),
        ({"text": 200}, "axis 0 (text and image)"),
        ({"target": (1, 40)}, "axis 2 (column): axes_lens ends at 32"),
        ({"references": [(40, 1)]}, "axis 1 (row): axes_lens ends at 32"),
    ],
)
def test_what_is_beyond_its_limits_is_one_clear_message(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        MODEL([omnigen2.sample(1, **change)])  # type: ignore[arg-type]
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_odd_latents_and_empty_lists_are_one_clear_message() -> None:
    one = omnigen2.sample(1)
    with pytest.raises(ConfigError, match="the target: its latent is 6 x 3; both sides must be multiples of 2"):
        MODEL([DiffusionSample(one.text, one.latent[:, :3], 0.5)])
    with pytest.raises(ConfigError, match="reference 1: its latent is 5 x 4"):
        MODEL([DiffusionSample(one.text, one.latent, 0.5, (one.latent[:, :, :5],))])
    with pytest.raises(ConfigError, match="reference 1: its latent must be"):
        MODEL([DiffusionSample(one.text, one.latent, 0.5, (one.latent[:, :0],))])
    with pytest.raises(ConfigError, match="no samples"):
        MODEL([])


def test_an_empty_list_of_references_is_no_references() -> None:
    one = omnigen2.sample(1)
    with torch.no_grad():
        assert torch.equal(MODEL([one])[0], MODEL([DiffusionSample(one.text, one.latent, one.time, ())])[0])


def test_a_time_is_not_rounded_to_the_type_of_the_weights() -> None:
    """0.9383 is 0.9375 in bfloat16."""
    model = omnigen2.model().to(torch.bfloat16)
    one = omnigen2.sample(1)
    exact, rounded = 0.9383, float(torch.tensor(0.9383).bfloat16())
    assert times_of([DiffusionSample(one.text, one.latent, exact)], model.device).dtype == torch.float32
    features = [time_features(torch.tensor([t]), 1000.0) for t in (exact, rounded)]
    assert (features[0] - features[1]).abs().max() > 0.5
    with torch.no_grad():
        velocities = [model([DiffusionSample(one.text, one.latent, t)])[0] for t in (exact, rounded)]
    assert velocities[0].dtype == torch.float32
    assert not torch.equal(*velocities)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_kv_heads": 4}, "heads must divide"),
        ({"axes_dim_rope": (40, 40, 42)}, "width of a head, 120"),
        ({"out_channels": 8}, "out_channels"),
        ({"rope_theta": 5}, "rope_theta"),
    ],
)
def test_a_configuration_that_does_not_fit_names_its_key(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TransformerConfig.from_values(values, omnigen2.GOLDEN)
    with pytest.raises(ConfigError, match="describes a Lumina2"):
        TransformerConfig.from_values({"_class_name": "Lumina2"}, omnigen2.GOLDEN)
