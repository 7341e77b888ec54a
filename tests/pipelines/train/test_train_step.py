"""A step means the same however its packs are spread over forward passes and ranks, and a bad one leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import ranks
from support.sequences import FIRST_ATTRIBUTE, Case, case, one_thread, pack, tiny_model  # noqa: F401
from torch import Tensor

from pipelines.train.bagel_backbone import BagelBackbone
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.parallelize import parallelize
from pipelines.train.distributed.process_group import ProcessGroup, start_process_group, stop_process_group
from pipelines.train.ema import Ema
from pipelines.train.train_step import StepResult, TrainStep
from sigma_data.instruction import ATTRIBUTES
from sigma_data.loading.batch import PackedBatch
from sigma_data.loading.loader import Loaded
from sigma_data.sample import Family, Turn
from sigma_model.loading import LoadedModel
from sigma_model.model import SigmaModel

ALONE = ProcessGroup.single()
PICTURE = case("paint <subject> the cat from <image_1> in <image_2>", pictures=3)
TOLD = case(Turn("what is in <image_1>", response="a red cat"), pictures=1)
LONG = case(Turn("what is it", response="a dog next to the old man in red"), pictures=0)
NO_REFERENCE = case("paint the old man", pictures=1, sizes={1: (28, 12)})
ONE_TOKEN = case("paint a dog", pictures=1, sizes={1: (4, 4)})
SHORT = case(Turn("what is it", response=""), pictures=0)
MIXED = [PICTURE, TOLD, NO_REFERENCE, LONG]
ODD: dict[str, list[Case]] = {
    "only text": [LONG, SHORT],
    "one answer token": [SHORT],
    "only pictures": [PICTURE, NO_REFERENCE],
    "no reference": [NO_REFERENCE],
    "one target token": [ONE_TOKEN],
    "nothing": [],
}


class NoPictures:
    """Stands in for the autoencoder: latents are given here."""

    def encode(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        assert not pictures
        return []


def loaded(cases: Sequence[Case], *, seed: object = 0) -> Loaded:
    return Loaded(pack(cases, seed=seed), (Family.EDITING,) * len(cases), 0, 0, (), 0, 0, 0.0)


def split(pack_: Loaded, cases: Sequence[Case]) -> list[Loaded]:
    """The samples of `loaded(cases)`, a pack each, with the noise they have there."""
    from support.sequences import SPECIALS, item, tiny_config

    from sigma_data.loading.collate import collate
    from sigma_model.model import widths

    config = tiny_config()
    items = [item(one.layout(), config, seed=(0, number)) for number, one in enumerate(cases)]
    return [
        replace(pack_, batch=collate([one], SPECIALS, widths(config)), families=pack_.families[:1]) for one in items
    ]


class Plain(torch.optim.SGD):
    """p <- p - gradient: what a step did shows the gradient itself."""


def config(**changes: Any) -> TrainConfig:
    values = {"out": "x", "steps": 1, "data": {"corpora": [{"path": "x"}]}, "optimizer": {"clip": 1e9}, **changes}
    return TrainConfig.model_validate(values)


def stepper(model: SigmaModel, settings: TrainConfig, group: ProcessGroup = ALONE, **parts: Any) -> TrainStep:
    optimizer = parts.get("optimizer") or Plain([p for p in model.parameters() if p.requires_grad], lr=1.0)
    ids = {name: FIRST_ATTRIBUTE + number for number, name in enumerate(ATTRIBUTES)}
    words: Any = SimpleNamespace(attribute_ids=ids)
    vae: Any = NoPictures()
    geometry: Any = None
    backbone = BagelBackbone(settings, LoadedModel("tiny", model, vae, words, geometry, trained=False))
    return TrainStep(settings, group, backbone, optimizer, parts.get("ema"))


def gradients(packs: Sequence[Loaded], **changes: Any) -> tuple[dict[str, Tensor], StepResult]:
    """What one step takes off each parameter."""
    model = tiny_model(seed=1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    done = stepper(model, config(**changes)).step(packs, 1.0)
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}, done


def expected_update(batches: Sequence[PackedBatch], *, text: float = 0.25) -> tuple[dict[str, Tensor], float]:
    """The gradient of the average over the target tokens plus `text` times the weighted one over answer tokens."""
    model = tiny_model(seed=1)
    mse, ce, weights = [], [], []
    for batch in batches:
        out = model(batch, model.clean_latents(batch, batch.known_latents))
        mse.append(out.mse.mean(-1))
        ce.append(out.ce)
        weights.append(batch.answer_weights)
    pictures, answers, weight = torch.cat(mse), torch.cat(ce), torch.cat(weights)
    loss = pictures.sum() / max(1, len(pictures)) + text * (answers * weight).sum() / weight.sum().clamp(min=1e-9)
    loss.backward()
    found = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}
    return found, loss.item()


def agree(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 2e-6) -> None:
    """Within what the order of sums in float32 makes: gradients here are around 0.1 and sums of a few dozen terms."""
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_accumulating_four_packs_is_one_pack_of_four_though_their_tokens_are_uneven() -> None:
    whole = loaded(MIXED)
    parts = split(whole, MIXED)
    assert len({(len(part.batch.target_slots), len(part.batch.answer_slots)) for part in parts}) == 4
    one, alone = gradients([whole])
    four, on_all_ranks = gradients(parts)
    agree(one, four)
    assert on_all_ranks.loss == pytest.approx(alone.loss, rel=1e-6)
    assert on_all_ranks.norm == pytest.approx(alone.norm, rel=1e-5)
    expected, loss = expected_update([whole.batch])
    agree(one, expected)
    assert alone.loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a usual one"])
def test_an_odd_pack_is_no_special_case(name: str, beside: bool) -> None:
    packs = [loaded(ODD[name], seed=name)] + [loaded(MIXED)] * beside
    found, done = gradients(packs)
    assert done.taken
    expected, loss = expected_update([one.batch for one in packs])
    agree(found, expected)
    assert done.loss == pytest.approx(loss, rel=1e-5, abs=1e-9)


def on_ranks(settings: dict[str, Any], names: Sequence[str]) -> list[tuple[dict[str, Tensor], float, bool]]:
    """A step for each name, of which rank 0 has the odd pack of that name and the others usual ones."""
    torch.set_num_threads(1)
    chosen = config(parallel=settings)
    group = start_process_group(chosen.parallel, device="cpu", timeout_s=60)
    found = []
    for name in names:
        model = tiny_model(seed=1)
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        parallelize(model, group, chosen.parallel, dtype=torch.float32)
        mine = loaded(ODD[name], seed=name) if group.rank == 0 else loaded(MIXED[: 1 + group.rank], seed=group.rank)
        done = stepper(model, chosen, group).step([mine], 1.0, stop=group.rank == group.size - 1)
        assert done.stop, "a rank that must stop tells all"
        whole = dict(ranks.full_state_on_rank0(dict(model.named_parameters()), group))
        delta = {key: before[key] - whole[key].detach() for key in whole}
        found.append((delta, done.loss, done.taken))
    stop_process_group()
    return found


@pytest.mark.slow
def test_two_ranks_of_which_one_has_an_odd_pack_take_the_step_of_one() -> None:
    """To 2e-6, as above: sums over ranks are made in another order."""
    results = ranks.run(on_ranks, 2, {}, list(ODD), timeout_s=120)[0]
    for name, (delta, loss, taken) in zip(ODD, results, strict=True):
        packs = [loaded(ODD[name], seed=name), loaded(MIXED[:2], seed=1)]
        expected, done = gradients(packs)
        assert taken and loss == pytest.approx(done.loss, rel=1e-6)
        agree(delta, expected)


@pytest.mark.slow
def test_two_copies_on_two_ranks_each_take_the_step_of_one() -> None:
    ((delta, loss, taken),) = ranks.run(on_ranks, 4, {"shard": 2}, ["only text"], timeout_s=120)[0]
    packs = [loaded(ODD["only text"], seed="only text")]
    packs += [loaded(MIXED[: 1 + rank], seed=rank) for rank in (1, 2, 3)]
    expected, done = gradients(packs)
    assert taken and loss == pytest.approx(done.loss, rel=1e-6)
    agree(delta, expected)


def parts_of(model: SigmaModel, optimizer: torch.optim.Optimizer, ema: Ema) -> dict[str, Tensor]:
    """All that a step changes."""
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moments = {
        f"{number}/{key}": value
        for number, parameter in enumerate(model.parameters())
        for key, value in optimizer.state[parameter].items()
    }
    averages = {f"ema/{name}": value for name, value in ema.state_dict().items()}
    return {name: value.clone() for name, value in {**named, **moments, **averages}.items()}


@pytest.mark.parametrize("fault", ["noise", "latents", "spike"])
def test_a_step_that_goes_wrong_leaves_no_trace_but_in_the_count(fault: str) -> None:
    model = tiny_model(seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ema = Ema(model.named_parameters(), 0.9)
    one = stepper(model, config(optimizer={"spike": 50.0}), optimizer=optimizer, ema=ema)
    good = loaded(MIXED)
    assert one.step([good], 1e-3).taken
    before, losses = parts_of(model, optimizer, ema), one.losses.table.clone()
    twin = copy.deepcopy(model)
    if fault == "noise":
        bad = replace(good, batch=replace(good.batch, noise=good.batch.noise * float("nan")))
    elif fault == "latents":
        spoilt = tuple(latent * float("inf") for latent in good.batch.known_latents)
        bad = replace(good, batch=replace(good.batch, known_latents=spoilt))
    else:
        bad = replace(good, batch=replace(good.batch, noise=good.batch.noise * 1e4))
    done = one.step([good, bad], 1.0)
    assert not done.taken and not done.norm < 50
    after = parts_of(model, optimizer, ema)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(one.losses.table, losses)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert one.step([good], 1e-3).taken
    assert not torch.equal(twin.lm_head.weight, model.lm_head.weight)


def test_a_long_gradient_is_scaled_down_and_its_length_before_is_told() -> None:
    free, done = gradients([loaded(MIXED)])
    clipped, short = gradients([loaded(MIXED)], optimizer={"clip": 0.1})
    assert short.norm == pytest.approx(done.norm) and done.norm > 0.2
    agree(clipped, {name: value * (0.1 / done.norm) for name, value in free.items()})


def test_losses_count_by_their_weights() -> None:
    found, done = gradients([loaded([LONG])], loss={"text": 0.0})
    assert done.taken and done.loss == 0 and not any(value.any() for value in found.values())
    plain, _ = gradients([loaded([LONG, SHORT, TOLD])], loss={"text": 1.0, "reweight_text": False})
    weighted, _ = gradients([loaded([LONG, SHORT, TOLD])], loss={"text": 1.0})
    assert (plain["lm_head.weight"] - weighted["lm_head.weight"]).abs().max() > 1e-4


def test_a_frozen_understanding_expert_stays_and_the_generation_expert_learns() -> None:
    model = tiny_model(seed=1)
    model.freeze(und=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert stepper(model, config()).step([loaded(MIXED)], 1.0).taken
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and not [name for name in changed if ".und." in name or "embed" in name.split(".")]
    assert changed <= {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_weights_of_losses_timestep_shift_and_group_mask_reach_the_model() -> None:
    # An attribute token behind a picture of another group: only there does the mask hide anything.
    packs = [loaded([*MIXED, case("paint <image_1> in <style> the red <image_2>", pictures=3)])]
    usual, plain = gradients(packs)
    doubled, twice = gradients(packs, loss={"image": 2.0, "text": 0.5})
    assert twice.loss == pytest.approx(2 * plain.loss, rel=1e-5)
    agree({name: 2 * value for name, value in usual.items()}, doubled, atol=1e-5)
    for change in ({"loss": {"timestep_shift": 3.0}}, {"model": {"group_mask": False}}):
        _, other = gradients(packs, **change)
        assert abs(other.loss - plain.loss) > 1e-6, change
