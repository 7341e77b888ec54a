"""Any number of ranks computes what one does, holds no more than its share, and none waits for ever."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ranks
from support.sequences import FIRST_ATTRIBUTE, case, one_thread, pack, tiny_config, tiny_model
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipelines.train.config import LoraSettings, ParallelSettings
from pipelines.train.distributed.clip import clip_grad_norm
from pipelines.train.distributed.materialize import init_weights_sharded, load_weights_sharded
from pipelines.train.distributed.parallelize import callable_in_parts, parallelize
from pipelines.train.distributed.process_group import (
    ProcessGroup,
    all_reduce_sum,
    barrier,
    start_process_group,
    stop_process_group,
)
from pipelines.train.lora import add_lora, init_lora
from pipelines.train.token_rows import add_token_rows
from sigma_data.errors import ConfigError
from sigma_data.loading.batch import PackedBatch
from sigma_data.sample import Turn
from sigma_model.attention import attention_for
from sigma_model.backbone import same_for_all
from sigma_model.checkpoint_io import export_model, init_model, load_model
from sigma_model.config import preset
from sigma_model.model import SigmaModel

__all__ = ["one_thread"]
PLAIN = ParallelSettings()


def batch(number: int) -> PackedBatch:
    """Packs that differ in all that ranks may differ in."""
    picture = case("paint <subject> the cat from <image_1> in <image_2>", pictures=3)
    told = case(Turn("what is in <image_1>", response="a red cat"), pictures=1)
    only_text = case(Turn("what is it", response="a dog"), pictures=0)
    from_text = case("paint the old man", pictures=1)
    kinds = [[picture, told], [only_text], [from_text, picture], [told]]
    return pack(kinds[number % 4], seed=number)


def latents(model: SigmaModel, one: PackedBatch) -> Tensor:
    return model.clean_latents(one, one.known_latents)


def train(model: SigmaModel, batches: Sequence[PackedBatch]) -> float:
    """Forward and backward; the loss is a sum over tokens."""
    total = 0.0
    for one in batches:
        out = model(one, latents(model, one))
        loss = out.mse.sum() * 0.1 + out.ce.sum()
        loss.backward()
        total += loss.item()
    return total


def prepare(model: SigmaModel, part: str) -> None:
    if part == "freeze_und":
        model.freeze(und=True)
    elif part == "tokens":
        model.freeze(und=True)
        add_token_rows(model, range(FIRST_ATTRIBUTE, FIRST_ATTRIBUTE + 15))
    elif part == "freeze_vit":
        model.freeze(vit=True)
    elif part == "mixed":
        for number, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(number % 3 != 0)
    elif part == "lora":
        add_lora(model, LoraSettings(rank=4, train=(r"latent_out",)), seed=3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))


def whole(tensors: dict[str, Tensor], group: ProcessGroup) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in ranks.full_state_on_rank0(tensors, group)}


def gradients(size_of_run: int, settings: ParallelSettings, part: str) -> tuple[float, dict[str, Tensor], float]:
    """Loss, gradients and their norm of `size_of_run` packs, shared out over the ranks there are."""
    group = start_process_group(settings, device="cpu", timeout_s=20)
    model = tiny_model(seed=1, attribute_projection=True)
    prepare(model, part)
    parallelize(model, group, settings, dtype=torch.float32)
    mine = [batch(number) for number in range(group.rank, size_of_run, group.size)]
    loss = all_reduce_sum(torch.tensor(train(model, mine)), group).item()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = clip_grad_norm(model.parameters(), group, 1e9)
    assert type(norm) is Tensor
    full = whole(found, group)
    stop_process_group()
    return loss, full, norm.item()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["all", "freeze_und", "tokens", "freeze_vit", "mixed", "lora"])
def test_two_ranks_give_the_losses_and_gradients_of_one(part: str) -> None:
    one = gradients(4, PLAIN, part)
    check_same(one, ranks.run(gradients, 2, 4, PLAIN, part)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ParallelSettings(shard=2),
        ParallelSettings(shard=1),
        ParallelSettings(checkpointing="full"),
        ParallelSettings(checkpointing="selective", shard=2),
    ],
    ids=str,
)
def test_four_ranks_in_any_arrangement_give_the_losses_and_gradients_of_one(settings: ParallelSettings) -> None:
    check_same(gradients(4, PLAIN, "all"), ranks.run(gradients, 4, 4, settings, "all")[0])


def check_same(one: Any, other: Any) -> None:
    assert other[0] == pytest.approx(one[0], rel=1e-5)
    assert other[2] == pytest.approx(one[2], rel=1e-5)
    assert other[1].keys() == one[1].keys()
    assert len(one[1]) > 4
    for name, gradient in one[1].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(other[1][name], gradient, rtol=1e-5, atol=1e-5 * max(scale, 1e-3), msg=name)


@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_checkpointing_changes_no_bit_and_computes_layers_again(checkpointing: Any) -> None:
    expected = gradients(2, PLAIN, "all")
    settings = ParallelSettings(checkpointing=checkpointing)
    found = gradients(2, settings, "all")
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())
    group = ProcessGroup.single()
    model = tiny_model()
    runs: list[int] = []
    for number, layer in enumerate(model.backbone.layers):
        counted, project = number, layer.und.project
        layer.und.project = lambda *a, counted=counted, project=project: runs.append(counted) or project(*a)
    parallelize(model, group, settings, dtype=torch.float32)
    train(model, [batch(0)])
    assert sorted(runs) == ([0, 0, 1, 1] if checkpointing == "full" else [0, 0, 1])


def out_of_step() -> dict[str, Tensor]:
    group = start_process_group(PLAIN, device="cpu", timeout_s=20)
    model = tiny_model(seed=1, attribute_projection=True)
    parallelize(model, group, PLAIN, dtype=torch.float32)
    # Words alone, pictures without an answer, an answer about a picture: three steps, ranks out of step.
    for step in range(3):
        model.zero_grad()
        train(model, [batch((1, 2, 3)[(step + group.rank) % 3])])
    full = whole({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, group)
    stop_process_group()
    return full


@pytest.mark.slow
def test_ranks_whose_packs_lack_pictures_patches_or_targets_hold_up_no_other() -> None:
    found = ranks.run(out_of_step, 2)[0]
    model = tiny_model(seed=1, attribute_projection=True)
    train(model, [batch(3), batch(1)])
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-5, msg=name)


def forward_types() -> dict[str, Any]:
    group = start_process_group(PLAIN, device="cpu", timeout_s=20, mixed=True)
    assert group.mesh is not None
    model = tiny_model(seed=1)
    parallelize(model, group, PLAIN, dtype=torch.bfloat16)
    seen = {}
    layer = model.backbone.layers[1]
    layer.register_forward_hook(lambda _m, inputs, _o: seen.update(layer=inputs[1].dtype))
    one = batch(0)
    out = model(one, latents(model, one))
    (out.mse.sum() + out.ce.sum()).backward()
    level = one.u.sigmoid()
    parameter = next(model.parameters())
    assert parameter.grad is not None
    stop_process_group()
    return seen | {
        "level": torch.equal(out.level, level),
        "parameter": parameter.dtype,
        "gradient": parameter.grad.dtype,
    }


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_layers_compute_in_bfloat16_from_float32_parameters_and_noise_levels_stay_float32(size: int) -> None:
    for found in ranks.run(forward_types, size):
        assert found == {
            "layer": torch.bfloat16,
            "level": True,
            "parameter": torch.float32,
            "gradient": torch.float32,
        }


# Weights


def built(*, lora: bool = False) -> SigmaModel:
    with torch.device("meta"):
        model = SigmaModel(tiny_config(attribute_projection=True))
    if lora:
        add_lora(model, LoraSettings(rank=4), seed=3)
    return model


def loaded(source: Path | int, settings: ParallelSettings, lora: bool) -> tuple[dict[str, Tensor], int, int]:
    """The whole state, and how many numbers this rank holds of how many."""
    group = start_process_group(settings, device="cpu", timeout_s=20)
    model = built(lora=lora)
    parallelize(model, group, settings, dtype=torch.float32)
    types = {"dtype": torch.bfloat16, "trainable": torch.float32}
    if isinstance(source, int):
        init_weights_sharded(model, source, group, **types)
    else:
        load_weights_sharded(model, source, group, **types)
    if lora:
        init_lora(model, seed=3)
    parameters = list(model.parameters())
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
    train(model, [batch(group.rank)])  # FSDP must accept what was put in place
    state = {name: tensor.clone() for name, tensor in ranks.full_state_on_rank0(model, group)}
    stop_process_group()
    return state, held, sum(p.numel() for p in parameters)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "shard"), [(1, None), (2, None), (3, None), (4, 2)])
def test_every_rank_loads_its_own_rows_and_together_they_are_the_file(
    tmp_path: Path, size: int, shard: int | None
) -> None:
    model = tiny_model(seed=5)
    export_model(model, tmp_path)
    found = ranks.run(loaded, size, tmp_path, ParallelSettings(shard=shard), False)
    expected = load_model(tmp_path, dtype=torch.float32, config=built().config).state_dict()
    buffers = dict(model.named_buffers())
    assert found[0][0].keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[0][0][name], tensor.bfloat16() if name in buffers else tensor), name
    for _, held, of in found:
        assert held <= of / (shard or size) * 1.1


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_weights_drawn_by_any_number_of_ranks_are_those_of_init_model(size: int) -> None:
    found = ranks.run(loaded, size, 11, PLAIN, False)[0][0]
    expected = init_model(built().config, seed=11)
    trainable = {name for name, _ in expected.named_parameters()}
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found[name], tensor if name in trainable else tensor.bfloat16()), name


@pytest.mark.slow
def test_low_rank_additions_beside_a_bfloat16_base_stay_float32_and_do_not_depend_on_the_ranks() -> None:
    found = ranks.run(loaded, 2, 11, PLAIN, True)[0][0]
    one = ranks.run(loaded, 1, 11, PLAIN, True)[0][0]
    assert {tensor.dtype for name, tensor in found.items() if "lora" in name} == {torch.float32}
    assert {tensor.dtype for name, tensor in found.items() if "lora" not in name} == {torch.bfloat16}
    assert found.keys() == one.keys()
    assert all(torch.equal(found[name], one[name]) for name in one)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    export_model(init_model(tiny_config(vision=False), seed=0), tmp_path)
    model = built()
    group = ProcessGroup.single()
    with pytest.raises(ConfigError, match="missing"):
        load_weights_sharded(model, tmp_path, group, dtype=torch.float32)
    assert next(model.parameters()).is_meta, "nothing may have been read"


def peak(source: Path | int) -> tuple[int, int]:
    """Bytes that loading took at its peak, beyond what is resident afterwards; and this rank's share."""
    group = start_process_group(PLAIN, device="cpu", timeout_s=60)
    with torch.device("meta"):
        model = SigmaModel(wide())
    parallelize(model, group, PLAIN, dtype=torch.float32)
    before = ranks.reset_peak()
    if isinstance(source, int):
        init_weights_sharded(model, source, group, dtype=torch.float32)
    else:
        load_weights_sharded(model, source, group, dtype=torch.float32)
    growth = ranks.peak() - before
    share = sum(p.to_local().nbytes for p in model.parameters() if isinstance(p, DTensor))
    barrier(group)
    stop_process_group()
    return growth, share


def wide() -> Any:
    tiny = preset("tiny")
    language = tiny.language.model_copy(update={"hidden_size": 640, "intermediate_size": 2560, "vocab_size": 4000})
    return tiny.model_copy(update={"language": language})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peak memory from /proc")
@pytest.mark.parametrize("drawn", [False, True])
def test_no_rank_takes_more_than_its_share_and_one_tensor_to_load(tmp_path: Path, drawn: bool) -> None:
    if not drawn:
        export_model(init_model(wide(), seed=0), tmp_path)
    largest = 4000 * 640 * 4
    for growth, share in ranks.run(peak, 2, 3 if drawn else tmp_path):
        assert share > 80e6
        # Drawing takes up to four of a tensor at once; a second copy of anything would be far more.
        assert growth < share + 4 * largest + 16e6, f"{growth / share:.2f} of the share of {share / 1e6:.0f} MB"


# Sums and norms


def sums() -> tuple[Tensor, Tensor]:
    group = start_process_group(PLAIN, device="cpu", timeout_s=20)
    mine = torch.tensor([1.0, group.rank])
    total = all_reduce_sum(mine, group)
    barrier(group)
    stop_process_group()
    return mine, total


@pytest.mark.slow
def test_a_sum_over_ranks_leaves_what_was_added_up() -> None:
    for rank, (mine, total) in enumerate(ranks.run(sums, 3)):
        assert mine.tolist() == [1, rank]
        assert total.tolist() == [3, 3]


def clipped(shard: int | None) -> tuple[float, dict[str, Tensor]]:
    settings = ParallelSettings(shard=shard)
    group = start_process_group(settings, device="cpu", timeout_s=20)
    model = tiny_model(seed=1)
    parallelize(model, group, settings, dtype=torch.float32)
    train(model, [batch(2 * group.rank), batch(2 * group.rank + 1)] if group.size > 1 else [batch(n) for n in range(4)])
    beside = torch.nn.Parameter(torch.ones(3))  # a plain one among sharded ones
    beside.grad = torch.tensor([3.0, 4.0, 0.0])
    norm = clip_grad_norm([*model.parameters(), beside], group, 0.5).item()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    full = whole(grads | {"beside": beside.grad}, group)
    stop_process_group()
    return norm, full


@pytest.mark.slow
@pytest.mark.parametrize("shard", [None, 1])
def test_clipping_sees_all_ranks_and_plain_parameters_once(shard: int | None) -> None:
    one = clipped(None)
    found = ranks.run(clipped, 2, shard)
    assert found[0][0] == found[1][0] == pytest.approx(one[0], rel=1e-5)
    after = torch.cat([gradient.flatten() for gradient in found[0][1].values()]).norm().item()
    assert after == pytest.approx(0.5, rel=1e-4)
    assert set(found[0][1]) == set(one[1])
    assert not found[1][1], "whole tensors are for rank 0 alone"


def test_clipping_leaves_a_short_gradient_alone_and_none_at_all_has_norm_zero() -> None:
    group = ProcessGroup.single()
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert clip_grad_norm([parameter], group, 1.0).item() == 0
    parameter.grad = torch.tensor([0.3, 0.4])
    assert clip_grad_norm([parameter], group, 1.0).item() == pytest.approx(0.5)
    assert parameter.grad.tolist() == torch.tensor([0.3, 0.4]).tolist()


def in_parts(model: SigmaModel, one: PackedBatch) -> tuple[Tensor, Tensor]:
    und, gen = model.embed(one, latents(model, one), one.u.sigmoid())
    attend = attention_for(one, group_mask=True)
    und, gen = model.backbone(und, gen, one.positions, same_for_all(attend))
    return und, gen


def sampled() -> Tensor:
    group = start_process_group(PLAIN, device="cpu", timeout_s=20)
    model = tiny_model(seed=1)
    parallelize(model, group, PLAIN, dtype=torch.float32)
    one = batch(0)
    before = model(one, latents(model, one)).velocity
    with callable_in_parts(model), torch.no_grad():
        parts = in_parts(model, one)
    after = model(one, latents(model, one)).velocity
    stop_process_group()
    assert torch.equal(before, after)
    return torch.cat(parts)


@pytest.mark.slow
def test_parts_of_a_sharded_model_can_be_called_by_themselves() -> None:
    model = tiny_model(seed=1)
    one = batch(0)
    expected = torch.cat(in_parts(model, one))
    for found in ranks.run(sampled, 2):
        torch.testing.assert_close(found, expected.detach())


# The process group


@pytest.fixture
def no_world() -> Any:
    yield
    stop_process_group()


def test_without_a_launcher_the_world_is_one_and_its_parameters_plain(no_world: None) -> None:
    assert "RANK" not in os.environ
    group = start_process_group(PLAIN, device="cpu")
    assert (group.rank, group.size, group.mesh) == (0, 1, None)
    model = tiny_model()
    parallelize(model, group, PLAIN, dtype=torch.float32)
    assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())


def test_a_world_computes_with_the_threads_asked_for_and_leaves_as_many_as_there_were(no_world: None) -> None:
    before = torch.get_num_threads()
    for asked in (before + 2, None, 1):
        start_process_group(ParallelSettings(threads=asked), device="cpu")
        assert torch.get_num_threads() == (asked or before)
        stop_process_group()
        assert torch.get_num_threads() == before
    torch.set_num_threads(before + 1)
    stop_process_group()
    assert torch.get_num_threads() == before + 1, "a process group that is left already gives nothing back"
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ParallelSettings(shard=3), "3 does not divide the 4 ranks: choose one of 1, 2, 4"),
        (ParallelSettings(shard=8), "8 does not divide the 4 ranks"),
        (ParallelSettings(offload=True), "offload needs a GPU"),
        (ParallelSettings(compile=True), "compile needs a GPU"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused_before_ranks_meet(
    settings: ParallelSettings, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=message):
        start_process_group(settings, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no GPU"):
        start_process_group(PLAIN, device="cuda")
