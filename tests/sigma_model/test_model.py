"""The network: training and sampling agree, the group mask holds to the bit, gradients go where promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.sequences import (  # noqa: F401
    SPECIALS,
    Case,
    attribute_id,
    case,
    generator,
    item,
    one_thread,
    sequence_order,
    tiny_config,
    tiny_model,
    word_ids,
)
from torch import Tensor

from sigma_data.loading.batch import Item, PackedBatch, unit_range
from sigma_data.loading.collate import collate
from sigma_data.sample import Turn
from sigma_data.sequence.guidance_layouts import without_references, without_text
from sigma_data.sequence.layout import Kind, Segment
from sigma_model.attention import Backend
from sigma_model.model import Output, SigmaModel, widths
from sigma_model.sampling.context import Context
from sigma_model.sampling.sampler import Branches, Sampler, sample_latents, times
from sigma_model.sampling.settings import Guidance, Rescale
from sigma_model.sampling.text_decoder import decode_text

OFF = Guidance(text=1, image=1)
SIZES = {1: (16, 12), 2: (8, 16), 3: (12, 12), 4: (16, 8)}


def known(instruction: str | Turn, pictures: int, *more: Turn) -> Case:
    return case(instruction, *more, pictures=pictures, sizes={n: s for n, s in SIZES.items() if n <= pictures})


COMPOSED = known("<subject> a <image_1> <style> b <image_2> <pose> c <image_3> <id> red", 4)
EDITED = known(Turn("paint <image_1> <style> red", target=2), 3, Turn("make it <pose> b", target=3))
PLAIN = known("paint a cat", 1)
ASKED = known(Turn("what is <image_1> <style> a", response="a red cat"), 1)
TRIED = (COMPOSED, EDITED, PLAIN)


def filled(one: Case, model: SigmaModel, seed: object = 0) -> Item:
    return item(one.layout(vision=model.config.vision is not None), model.config, seed=seed)


def batch_of(items: Sequence[Item], model: SigmaModel) -> PackedBatch:
    return collate(items, SPECIALS, widths(model.config))


def trained_pass(model: SigmaModel, items: Sequence[Item], **options: Any) -> tuple[PackedBatch, Output]:
    batch = batch_of(items, model)
    return batch, model(batch, model.clean_latents(batch, batch.known_latents), **options)


def first_layer(model: SigmaModel, one: Item, **options: Any) -> tuple[PackedBatch, Tensor]:
    """What the first layer gives, [N, D] in the order of the batch."""
    found: list[Tensor] = []
    handle = model.backbone.layers[0].register_forward_hook(lambda _m, _i, out: found.append(torch.cat(out)))
    try:
        with torch.no_grad():
            batch, _ = trained_pass(model, [one], **options)
    finally:
        handle.remove()
    return batch, found[0]


def with_other_picture(one: Item, number: int) -> Item:
    """The same, but for one picture's latents and patches."""
    latents = {**one.latents, number: one.latents[number].flip(-1) + 1}
    patches = dict(one.patches)
    if number in patches:
        patches[number] = patches[number].flip(0) - 1
    return replace(one, latents=latents, patches=patches)


def test_patches_as_bytes_and_as_floats_are_seen_alike() -> None:
    model = tiny_model()
    one = filled(ASKED, model)
    as_bytes = {number: (patches * 60 + 128).to(torch.uint8) for number, patches in one.patches.items()}
    as_floats = {number: unit_range(patches) for number, patches in as_bytes.items()}
    with torch.no_grad():
        found = [trained_pass(model, [replace(one, patches=patches)])[1].ce for patches in (as_bytes, as_floats)]
    assert torch.equal(*found)


# The group mask -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [Backend.SDPA, Backend.FLEX])
@pytest.mark.parametrize("vision", [True, False])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_another_group_s_pixels_move_an_attribute_token_by_no_bit_with_the_mask_and_without_it_they_do(
    backend: Backend, vision: bool, dtype: torch.dtype
) -> None:
    model = tiny_model(vision=vision, dtype=dtype)
    turn = Turn("<subject> a <image_1> <style> b <image_2> <pose> c <image_3> <id> red", target=4, bindings=((3, 1),))
    one = filled(known(turn, 4), model)
    other = with_other_picture(one, 1)
    for group_mask in (True, False):
        batch, before = first_layer(model, one, group_mask=group_mask, backend=backend)
        _, after = first_layer(model, other, group_mask=group_mask, backend=backend)
        # subject stands before picture 1 and never sees it; style and pose are of other groups; id is of its own.
        subject, style, pose, person = batch.tags.attribute.nonzero().flatten().tolist()
        assert batch.tags.group[[subject, style, pose, person]].tolist() == [1, 2, 3, 1]
        assert torch.equal(before[subject], after[subject])
        assert torch.equal(before[style], after[style]) == group_mask
        assert torch.equal(before[pose], after[pose]) == group_mask
        assert not torch.equal(before[person], after[person])
        words = batch.tags.image.logical_not() & batch.tags.attribute.logical_not()
        words &= batch.tags.place > batch.tags.place[style]
        assert words.any() and (before[words] != after[words]).any(1).all(), "ordinary words see every picture"


def test_the_group_mask_changes_nothing_without_attribute_tokens() -> None:
    model = tiny_model()
    items = [filled(known("paint <image_2> next to <image_1> red", 3), model), filled(PLAIN, model)]
    _, on = trained_pass(model, items, group_mask=True, hidden=True)
    _, off = trained_pass(model, items, group_mask=False, hidden=True)
    assert torch.equal(on.velocity, off.velocity) and torch.equal(on.und, off.und)
    _, on = trained_pass(model, [filled(COMPOSED, model)], group_mask=True)
    _, off = trained_pass(model, [filled(COMPOSED, model)], group_mask=False)
    assert (on.velocity - off.velocity).abs().max() > 1e-3


# The forward pass -----------------------------------------------------------------------------------


@torch.no_grad()
def test_losses_compare_the_velocity_with_noise_less_picture_and_the_text_with_its_next_word() -> None:
    model = tiny_model()
    batch, out = trained_pass(model, [filled(COMPOSED, model), filled(ASKED, model)], timestep_shift=2.0)
    plain = 1 / (1 + torch.exp(-batch.u))
    torch.testing.assert_close(out.level, 2 * plain / (1 + plain))
    latent = batch.known_latents[batch.latent_sources[int(batch.target_images[0])]]
    rows, columns = batch.latent_grids[int(batch.target_images[0])]
    patch = model.config.latent.patch_size
    clean = [
        [
            latent[c, r * patch + i, q * patch + j]
            for i in range(patch)
            for j in range(patch)
            for c in range(len(latent))
        ]
        for r in range(rows)
        for q in range(columns)
    ]
    torch.testing.assert_close(out.mse, (out.velocity - (batch.noise - torch.tensor(clean))) ** 2)
    logits = model.lm_head(out.und)
    chances = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
    picked = chances[torch.arange(len(batch.labels)), batch.labels]
    torch.testing.assert_close(out.ce, -picked.log().float(), atol=1e-4, rtol=1e-4)
    assert len(out.ce) == len(word_ids("a red cat")) + 1


@pytest.mark.parametrize("frozen", [False, True])
def test_leaving_out_what_carries_no_loss_changes_no_loss_and_no_gradient(frozen: bool) -> None:
    found = []
    for hidden in (False, True):
        model = tiny_model()
        model.freeze(und=frozen)
        batch, out = trained_pass(model, [filled(one, model) for one in (COMPOSED, ASKED, EDITED)], hidden=hidden)
        (out.mse.mean() + out.ce.mean()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((out, gradients))
    (few, of_few), (all_, of_all) = found
    assert len(few.und) == len(batch.answer_slots) < len(all_.und) == batch.n_und
    assert len(few.gen) == len(batch.target_slots) < len(all_.gen) == batch.n_gen
    torch.testing.assert_close((few.mse, few.ce, few.velocity), (all_.mse, all_.ce, all_.velocity))
    assert of_few.keys() == of_all.keys()
    torch.testing.assert_close(of_few, of_all, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_sample_s_output_does_not_depend_on_its_neighbours_in_the_pack() -> None:
    model = tiny_model()
    items = [filled(one, model, seed) for seed, one in enumerate((COMPOSED, ASKED, EDITED, PLAIN))]
    batch, together = trained_pass(model, items, hidden=True)
    order = sequence_order(batch)
    hidden = torch.cat((together.und, together.gen))[order]
    start = 0
    for one in items:
        alone_batch, alone = trained_pass(model, [one], hidden=True)
        expected = torch.cat((alone.und, alone.gen))[sequence_order(alone_batch)]
        torch.testing.assert_close(hidden[start : start + len(expected)], expected, atol=1e-5, rtol=1e-4)
        start += len(expected)
    assert start == batch.tokens


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_and_sdpa_give_the_same_output() -> None:
    model = tiny_model()
    items = [filled(one, model) for one in (COMPOSED, ASKED, EDITED)]
    _, flex = trained_pass(model, items, backend=Backend.FLEX)
    _, sdpa = trained_pass(model, items, backend=Backend.SDPA)
    torch.testing.assert_close(flex.velocity, sdpa.velocity, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(flex.ce, sdpa.ce, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("cases_", "has_mse", "has_ce"),
    [([ASKED], False, True), ([COMPOSED], True, False), ([PLAIN], True, False), ([ASKED, PLAIN], True, True)],
    ids=["no target", "no answer", "neither answer nor reference", "both"],
)
@pytest.mark.parametrize("vision", [True, False])
@pytest.mark.parametrize("freeze_und", [True, False])
def test_a_pack_without_one_of_the_losses_is_no_special_case(
    cases_: list[Case], has_mse: bool, has_ce: bool, vision: bool, freeze_und: bool
) -> None:
    model = tiny_model(vision=vision)
    model.freeze(und=freeze_und)
    batch, out = trained_pass(model, [filled(one, model) for one in cases_])
    assert out.mse.shape == (len(batch.target_slots), model.config.latent.features)
    assert out.ce.shape == batch.labels.shape
    assert (out.mse.numel() > 0, out.ce.numel() > 0) == (has_mse, has_ce)
    (out.mse.sum() + out.ce.sum()).backward()
    # Every part has run, for a rank of many must reduce the same gradients as the others.
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("one", [PLAIN, ASKED, COMPOSED])
def test_the_attribute_projection_works_without_pictures_of_a_kind(one: Case) -> None:
    model = tiny_model(attribute_projection=True)
    batch, out = trained_pass(model, [filled(one, model)])
    (out.mse.sum() + out.ce.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert len(out.mse) == len(batch.target_slots)


def test_latents_of_half_precision_are_noised_in_float32() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    batch = collate([filled(COMPOSED, model)], SPECIALS, widths(model.config))
    latents = model.clean_latents(batch, batch.known_latents).bfloat16()
    out = model(batch, latents)
    assert out.mse.dtype == torch.float32
    assert torch.equal(out.mse, model(batch, latents.float()).mse)


# Gradients ------------------------------------------------------------------------------------------

FROZEN = {
    "und": ("backbone.embed.", ".und.", "backbone.norm_und.", "vision.", "connector."),
    "vit": ("vision.",),
    "llm": ("backbone.", "lm_head."),
}


def without_gradient(model: SigmaModel) -> set[str]:
    """Names of parameters that a full batch's losses do not reach; all others have a gradient that is not zero."""
    model.zero_grad()
    _, out = trained_pass(model, [filled(one, model) for one in (COMPOSED, EDITED, ASKED)])
    (out.mse.mean() + out.ce.mean()).backward()
    found = set()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            found.add(name)
        else:
            assert parameter.grad.any(), name
    return found


@pytest.mark.parametrize("chosen", [(), ("und",), ("vit",), ("llm",), ("und", "vit"), ("vit", "llm"), ("und", "llm")])
def test_freezing_leaves_exactly_the_promised_parameters_without_gradient(chosen: tuple[str, ...]) -> None:
    model = tiny_model(attribute_projection=True)
    model.freeze(**dict.fromkeys(chosen, True))
    names = {name for name, _ in model.named_parameters()}
    marks = [mark for choice in chosen for mark in FROZEN[choice]]
    expected = {name for name in names if any(name.startswith(m) or (m[0] == "." and m in name) for m in marks)}
    assert bool(expected) == bool(chosen)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == expected
    assert without_gradient(model) == expected


def test_a_later_choice_of_what_is_frozen_replaces_the_one_before() -> None:
    model = tiny_model()
    model.freeze(und=True, vit=True, llm=True)
    model.freeze(vit=True)
    assert {name.split(".")[0] for name in without_gradient(model)} == {"vision"}
    model.freeze()
    assert without_gradient(model) == set()


def test_with_a_frozen_understanding_expert_no_gradient_flows_through_its_hidden_states() -> None:
    free, frozen = tiny_model(), tiny_model()
    frozen.freeze(und=True)
    outputs = [trained_pass(model, [filled(COMPOSED, model)], hidden=True)[1] for model in (free, frozen)]
    assert torch.equal(outputs[0].velocity, outputs[1].velocity), "freezing changes no number"
    assert outputs[0].und.requires_grad and not outputs[1].und.requires_grad
    for out in outputs:
        out.mse.mean().backward()
    # Two layers: a text token of the second sees the latents of the first, a way that freezing cuts.
    a, b = (model.latent_in.weight.grad for model in (free, frozen))
    assert a is not None and b is not None and not torch.allclose(a, b, rtol=1e-3)
    a, b = (model.latent_out.weight.grad for model in (free, frozen))
    assert a is not None and b is not None
    torch.testing.assert_close(a, b)


# The attribute projection ---------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("vision", [True, False])
def test_an_attribute_projection_of_zero_changes_no_bit(vision: bool) -> None:
    model, plain = tiny_model(vision=vision, attribute_projection=True), tiny_model(vision=vision)
    assert not model.attribute_projection.weight.any()
    items = [filled(COMPOSED, model), filled(PLAIN, model), filled(ASKED, model)]
    _, one = trained_pass(model, items)
    _, other = trained_pass(plain, items)
    assert torch.equal(one.velocity, other.velocity) and torch.equal(one.ce, other.ce)


@torch.no_grad()
@pytest.mark.parametrize("vision", [True, False])
def test_an_attribute_projection_adds_to_just_the_pictures_that_are_spoken_of(vision: bool) -> None:
    model = tiny_model(vision=vision, attribute_projection=True)
    weight = model.attribute_projection.weight
    bound = filled(known("<style> a <image_2> <image_1> <pose> <id> c <image_3>", 4), model)
    unbound = filled(known("paint <image_2> next to <image_1>", 3), model)

    def embedded(items: Sequence[Item]) -> tuple[PackedBatch, Tensor]:
        batch = batch_of(items, model)
        latents = model.clean_latents(batch, batch.known_latents)
        return batch, torch.cat(model.embed(batch, latents, batch.u.sigmoid()))

    batch, before = embedded([unbound, bound])
    weight.copy_(torch.randn(weight.shape, generator=generator("projection")))
    _, after = embedded([unbound, bound])
    tau = {name: weight @ model.backbone.embed.weight[attribute_id(name)] for name in ("style", "pose", "id")}
    added = {2: tau["style"], 3: (tau["pose"] + tau["id"]) / 2}  # the mean over a picture's attribute tokens
    shows = torch.ones(batch.tokens, dtype=torch.bool)  # delimiters are text and get nothing
    shows[batch.text_slots] = False
    for token in range(batch.tokens):
        group = int(batch.tags.group[token]) if batch.tags.sample[token] == 1 and shows[token] else 0
        if group in added:
            torch.testing.assert_close(after[token] - before[token], added[group], atol=1e-4, rtol=1e-4)
        else:
            assert torch.equal(after[token], before[token])
    _, moved = trained_pass(model, [bound])
    weight.zero_()
    _, still = trained_pass(model, [bound])
    assert (moved.velocity - still.velocity).abs().max() > 1e-3


# Training and sampling agree ------------------------------------------------------------------------


def branches(one: Item) -> Branches:
    """The three contexts of a request."""
    return [
        Context(segments, one)
        for segments in (tuple(one.segments), without_text(one.segments), without_references(one.segments))
    ]


def trained_velocity(
    model: SigmaModel,
    one: Item,
    noise: Tensor,
    level: float,
    *,
    segments: Sequence[Segment] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """(x, velocity) [tokens, F] of a layout's last target at a noise level, by the training pass."""
    segments = one.segments if segments is None else segments
    target = segments[-1]
    u = {**one.u, target.image: torch.tensor(level).logit().item()}
    changed = replace(one, segments=segments, noise={**one.noise, target.image: noise}, u=u)
    batch, out = trained_pass(model, [changed], **options)
    count = target.length - 2
    clean = model.clean_latents(batch, batch.known_latents)[batch.target_slots][-count:]
    torch.testing.assert_close(out.level[-1], torch.tensor(level))
    return (1 - level) * clean + level * noise, out.velocity[-count:]


def start(one: Item, model: SigmaModel, key: object = 0) -> Tensor:
    shape = (one.segments[-1].length - 2, model.config.latent.features)
    return torch.randn(shape, generator=generator("start", key, shape))


@torch.no_grad()
@pytest.mark.parametrize("group_mask", [True, False])
@pytest.mark.parametrize("vision", [True, False])
@pytest.mark.parametrize("level", [0.9, 0.3])
def test_the_sampler_s_velocity_is_the_training_pass_s(level: float, vision: bool, group_mask: bool) -> None:
    model = tiny_model(vision=vision, attribute_projection=True)
    model.attribute_projection.weight.copy_(torch.randn(32, 32, generator=generator("projection")) / 6)
    items = [filled(one, model, seed) for seed, one in enumerate(TRIED)]
    assert len({one.segments[-1].length for one in items}) == len(items), "targets of different sizes"
    both = [trained_velocity(model, one, start(one, model), level, group_mask=group_mask) for one in items]
    sampler = Sampler(model, [branches(one) for one in items], SPECIALS, guidance=OFF, group_mask=group_mask)
    found = sampler.velocity(torch.cat([x for x, _ in both]), level)
    torch.testing.assert_close(found, torch.cat([velocity for _, velocity in both]), atol=1e-4, rtol=0)
    again = sampler.velocity(torch.cat([x for x, _ in both]), level)
    assert torch.equal(found, again), "a step leaves nothing behind"


@torch.no_grad()
def test_the_group_mask_matters_to_the_sampler() -> None:
    model = tiny_model()
    one = filled(COMPOSED, model)
    x = start(one, model)
    on, off = (
        Sampler(model, [branches(one)], SPECIALS, guidance=OFF, group_mask=flag).velocity(x, 0.5)
        for flag in (True, False)
    )
    assert (on - off).abs().max() > 1e-3


@torch.no_grad()
def test_an_earlier_text_answer_is_seen_in_sampling_as_in_training() -> None:
    model = tiny_model()
    one = filled(known(Turn("what is <image_1>", response="a red cat"), 2, Turn("paint it", target=2)), model)
    assert [s.kind for s in one.segments].count(Kind.ANSWER) == 1
    x, expected = trained_velocity(model, one, start(one, model), 0.7)
    found = Sampler(model, [branches(one)], SPECIALS, guidance=OFF).velocity(x, 0.7)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("rescale", Rescale)
@pytest.mark.parametrize(("text", "image"), [(4.0, 2.0), (4.0, 1.0), (1.0, 2.0)])
def test_guided_velocities_are_the_formula_over_three_training_passes(
    text: float, image: float, rescale: Rescale
) -> None:
    model = tiny_model()
    items = [filled(one, model, seed) for seed, one in enumerate((COMPOSED, PLAIN))]
    guidance = Guidance(text=text, image=image, rescale=rescale, interval=(0.2, 0.8))
    sampler = Sampler(model, [branches(one) for one in items], SPECIALS, guidance=guidance)
    for level, guided in ((0.8, True), (0.2, False), (0.81, False)):
        xs, expected = [], []
        for one in items:
            contexts = [context.segments for context in branches(one)]
            passes = [trained_velocity(model, one, start(one, model), level, segments=s) for s in contexts]
            v, v_text, v_image = (velocity for _, velocity in passes)
            u = v_text + text * (v - v_text) if text > 1 and guided else v
            if rescale is Rescale.TEXT_CHANNEL and guided:
                u = u * (v.norm(dim=1) / (u.norm(dim=1) + 1e-8)).clamp(max=1)[:, None]
            u = v_image + image * (u - v_image) if image > 1 and guided else u
            if rescale is Rescale.CHANNEL and guided:
                u = u * (v.norm(dim=1) / (u.norm(dim=1) + 1e-8)).clamp(max=1)[:, None]
            if rescale is Rescale.GLOBAL and guided:
                u = u * (v.norm() / (u.norm() + 1e-8)).clamp(max=1)
            xs.append(passes[0][0])
            expected.append(u)
        torch.testing.assert_close(sampler.velocity(torch.cat(xs), level), torch.cat(expected), atol=3e-4, rtol=1e-4)


def test_noise_levels_fall_from_one_to_zero_shifted() -> None:
    levels = times(5, 3.0)
    assert levels == pytest.approx([1.0, 9 / 10, 3 / 4, 1 / 2, 0.0])
    assert times(3, 1.0) == pytest.approx([1.0, 0.5, 0.0])


def test_sampling_is_euler_steps_along_the_velocity_and_tells_its_progress() -> None:
    model = tiny_model()
    one = filled(COMPOSED, model)
    seen: list[tuple[int, int]] = []
    (found,) = sample_latents(
        model, [branches(one)], [start(one, model)], SPECIALS, steps=4, progress=lambda *step: seen.append(step)
    )
    sampler = Sampler(model, [branches(one)], SPECIALS)
    x = start(one, model)
    for now, following in ((1.0, 6 / 7), (6 / 7, 3 / 5), (3 / 5, 0.0)):
        x = x + sampler.velocity(x, now) * (following - now)
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.parametrize("vision", [True, False])
@pytest.mark.parametrize("guidance", [Guidance(), OFF, Guidance(text=1, image=2)], ids=["both", "none", "image"])
def test_requests_together_give_the_latents_of_each_alone(guidance: Guidance, vision: bool) -> None:
    model = tiny_model(vision=vision)
    items = [filled(one, model, seed) for seed, one in enumerate((*TRIED, COMPOSED))]
    noise = [start(one, model, key) for key, one in enumerate(items)]
    together = sample_latents(model, [branches(one) for one in items], noise, SPECIALS, steps=4, guidance=guidance)
    for one, beginning, found in zip(items, noise, together, strict=True):
        (alone,) = sample_latents(model, [branches(one)], [beginning], SPECIALS, steps=4, guidance=guidance)
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[3], atol=1e-2), "other references, other noise: other pictures"


# Text -----------------------------------------------------------------------------------------------

QUESTIONS = (
    ASKED,
    known(Turn("<style> a <image_2> b <image_1> <pose> the cat", response=""), 2),
    known(Turn("what is next to it", response=""), 0),
)


def contexts_of(model: SigmaModel, seed: int = 0) -> list[Context]:
    items = [filled(one, model, (seed, number)) for number, one in enumerate(QUESTIONS)]
    return [Context(one.segments, one) for one in items]


@torch.no_grad()
def likeliest(model: SigmaModel, context: Context, ids: Sequence[int], *, group_mask: bool = True) -> list[int]:
    """The likeliest token after each of an answer's, its start included, by the training pass."""
    *before, last = context.segments
    answer = replace(last, ids=tuple(ids), length=len(ids) + 2)
    _, out = trained_pass(model, [replace(context.item, segments=[*before, answer])], group_mask=group_mask)
    found: list[int] = model.lm_head(out.und).argmax(-1).tolist()
    return found[-len(ids) - 1 :]


@pytest.mark.parametrize("group_mask", [True, False])
@pytest.mark.parametrize("vision", [True, False])
def test_greedy_text_is_the_training_pass_s_likeliest_at_every_token(vision: bool, group_mask: bool) -> None:
    model = tiny_model(vision=vision)
    contexts = contexts_of(model)
    found = decode_text(model, contexts, SPECIALS, max_tokens=12, group_mask=group_mask)
    assert len(set(map(tuple, found))) == len(found)
    for context, ids in zip(contexts, found, strict=True):
        expected = likeliest(model, context, ids, group_mask=group_mask)
        assert expected[: len(ids)] == ids
        assert len(ids) == 12 or expected[len(ids)] == SPECIALS.eos
        assert len(ids) <= 12 and SPECIALS.eos not in ids


def test_text_stops_at_the_end_token_each_on_its_own() -> None:
    model = tiny_model()
    contexts = contexts_of(model)
    free = decode_text(model, contexts, SPECIALS, max_tokens=10)
    assert {len(ids) for ids in free} == {10}
    stop = free[0][3]
    with torch.no_grad():  # whenever `stop` would win, the end token now wins by a hair
        model.lm_head.weight[SPECIALS.eos] = 1.0001 * model.lm_head.weight[stop]
    found = decode_text(model, contexts, SPECIALS, max_tokens=10)
    assert found == [ids[: ids.index(stop)] if stop in ids else ids for ids in free]
    assert len(found[0]) == free[0].index(stop) and max(map(len, found)) == 10


def test_drawn_text_depends_on_the_context_s_own_seed_alone() -> None:
    model = tiny_model()
    contexts = contexts_of(model)

    def draw(chosen: Sequence[int], seeds: Sequence[int]) -> list[list[int]]:
        some = [contexts[number] for number in chosen]
        return decode_text(model, some, SPECIALS, max_tokens=10, temperature=1.0, seeds=seeds)

    together = draw([0, 1, 2], [7, 8, 9])
    assert together == draw([0, 1, 2], [7, 8, 9])
    assert together == [draw([number], [seed])[0] for number, seed in ((0, 7), (1, 8), (2, 9))]
    assert draw([2, 0], [9, 7]) == [together[2], together[0]]
    assert draw([0], [7]) != draw([0], [8])


def test_a_temperature_near_zero_draws_the_greedy_text() -> None:
    model = tiny_model()
    contexts = contexts_of(model)
    greedy = decode_text(model, contexts, SPECIALS, max_tokens=8)
    assert decode_text(model, contexts, SPECIALS, max_tokens=8, temperature=1e-4, seeds=[1, 2, 3]) == greedy


@torch.no_grad()
def test_an_earlier_answer_is_seen_in_decoding_as_in_training() -> None:
    model = tiny_model()
    one = known(Turn("what is <image_1>", response="a red cat"), 1, Turn("what is it", response=""))
    one_item = filled(one, model)
    context = Context(one_item.segments, one_item)
    (ids,) = decode_text(model, [context], SPECIALS, max_tokens=10)
    assert likeliest(model, context, ids)[: len(ids)] == ids


# bfloat16 -------------------------------------------------------------------------------------------

BF16 = 0.05
"""Relative error (of norms) that bfloat16's 8 bits may bring through the two layers, or the few steps, here."""


def apart(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def test_bfloat16_trains_on_a_cpu_near_float32() -> None:
    exact, half = tiny_model(), tiny_model(dtype=torch.bfloat16)
    outputs = []
    for model in (exact, half):
        _, out = trained_pass(model, [filled(one, model) for one in (COMPOSED, EDITED, ASKED)])
        (out.mse.mean() + out.ce.mean()).backward()
        outputs.append(out)
    assert outputs[1].und.dtype == outputs[1].gen.dtype == torch.bfloat16
    assert outputs[1].mse.dtype == outputs[1].ce.dtype == torch.float32, "losses are float32"
    assert apart(outputs[1].velocity, outputs[0].velocity) < BF16
    assert apart(outputs[1].ce, outputs[0].ce) < BF16
    for name in ("latent_out.weight", "backbone.layers.0.gen.q.weight", "backbone.layers.1.und.mlp.up.weight"):
        a, b = (model.get_parameter(name).grad for model in (half, exact))
        assert a is not None and b is not None and a.dtype == torch.bfloat16
        assert apart(a, b) < 3 * BF16


def test_bfloat16_samples_on_a_cpu_near_float32() -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model(dtype=dtype)
        items = [filled(one, model, seed) for seed, one in enumerate(TRIED)]
        noise = [start(one, model) for one in items]
        latents = sample_latents(model, [branches(one) for one in items], noise, SPECIALS, steps=4)
        assert all(latent.dtype == torch.float32 for latent in latents)
        found.append(torch.cat(latents))
        texts = decode_text(model, contexts_of(model), SPECIALS, max_tokens=4)
        assert [len(ids) for ids in texts] == [4, 4, 4]
    assert apart(found[1], found[0]) < BF16


# Configuration --------------------------------------------------------------------------------------


def test_weights_without_a_vision_encoder_have_no_part_of_it() -> None:
    names = set(tiny_model(vision=False).state_dict())
    assert not {name for name in names if name.startswith(("vision.", "connector.", "patch_positions"))}
    assert names < set(tiny_model().state_dict())
    assert tiny_config(vision=False).vision is None
