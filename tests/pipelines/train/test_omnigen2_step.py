"""OmniGen2's steps mean the same on any number of ranks, in any packs, before and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import omnigen2, ranks
from torch import Tensor

from pipelines.train.checkpoint import Checkpointer
from pipelines.train.config import CheckpointSettings, OptimizerSettings, ParallelSettings, TrainConfig
from pipelines.train.distributed.parallelize import parallelize
from pipelines.train.distributed.process_group import ProcessGroup, start_process_group, stop_process_group
from pipelines.train.ema import Ema
from pipelines.train.omnigen2.train_step import AnswerPack, ImagePack, Omnigen2Step, StepResult, Weights
from pipelines.train.omnigen2.weights import init_transformer_sharded, load_transformer_sharded
from pipelines.train.optimizer import Optimizers, make_optimizer
from pipelines.train.start_description import start_description
from sigma_data.errors import ConfigError
from sigma_model.omnigen2.answers import Conversation, answer_inputs
from sigma_model.omnigen2.checkpoint import empty_transformer, export_transformer, init_transformer
from sigma_model.omnigen2.flow import FlowTarget
from sigma_model.omnigen2.lora import add_adapter
from sigma_model.omnigen2.transformer import Omnigen2Transformer

pytestmark = pytest.mark.slow
SIZES = [((2, 3), 0), ((4, 2), 2), ((1, 5), 1), ((3, 3), 3), ((2, 2), 0), ((5, 4), 5)]


def target(number: int) -> FlowTarget:
    grid, references = SIZES[number % len(SIZES)]
    made = omnigen2.sample(number, text=2 + number % 4, target=grid, references=[(1 + n, 2) for n in range(references)])
    return FlowTarget(made.latent, omnigen2.latent(number + 90, *grid), made.time, made.text, made.references)


def whole(model: torch.nn.Module, group: ProcessGroup) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in ranks.full_state_on_rank0(dict(model.named_parameters()), group)}


def train(settings: ParallelSettings, directory: str, packs: int) -> tuple[list[StepResult], dict[str, Tensor]]:
    """Two steps on six samples in so many packs, shared out over the ranks there are."""
    group = start_process_group(settings, device="cpu", timeout_s=30)
    model = empty_transformer(omnigen2.CONFIG)
    parallelize(model, group, settings, dtype=torch.float32)
    load_transformer_sharded(model, Path(directory), group, dtype=torch.float32)
    step = Omnigen2Step(group, model, make_optimizer(model, OptimizerSettings(lr=1e-3, eps=1e-3)))
    found = []
    for number in range(2):
        every = [target(6 * number + one) for one in range(6)]
        size = 6 // packs
        cut = [ImagePack(tuple(every[at : at + size])) for at in range(0, 6, size)]
        found.append(step.step(cut[group.rank :: group.size], lr=1e-3))
    parameters = whole(model, group)
    stop_process_group()
    return found, parameters


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("transformer")
    export_transformer(omnigen2.model(), folder)
    return str(folder)


def check_same(one: Any, other: Any) -> None:
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert theirs.taken
        assert theirs.image == pytest.approx(mine.image, rel=1e-5)
        assert theirs.norm == pytest.approx(mine.norm, rel=1e-5)
    for name, parameter in one[1].items():
        torch.testing.assert_close(other[1][name], parameter, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "settings", [ParallelSettings(), ParallelSettings(checkpointing="full"), ParallelSettings(shard=1)], ids=str
)
def test_two_ranks_give_the_losses_and_parameters_of_one(directory: str, settings: ParallelSettings) -> None:
    one = train(ParallelSettings(), directory, 2)
    check_same(one, ranks.run(train, 2, settings, directory, 2)[0])


def test_packs_that_are_accumulated_are_one_pack(directory: str) -> None:
    """Not the sum of their means, as the reference has it; not the mean of their means, for sizes differ."""
    one = train(ParallelSettings(), directory, 1)
    for packs in (2, 3, 6):
        check_same(one, train(ParallelSettings(), directory, packs))


def test_pictures_and_answers_weigh_as_they_are_told_however_they_are_packed() -> None:
    toy = omnigen2.conditioner()
    conversations = [Conversation((("Why?", "because"),)), Conversation((("How many?", "three"), ("Sure?", "y")))]
    gradients = []
    for split in (False, True):
        toy.mllm.requires_grad_(True).zero_grad()
        model = omnigen2.model()
        group = ProcessGroup.single()
        optimizer = make_optimizer(model, OptimizerSettings(lr=1e-9))
        optimizer.zero_grad = lambda: None  # type: ignore[method-assign]
        step = Omnigen2Step(group, model, optimizer, mllm=toy.mllm, weights=Weights(1.0, 0.5), clip=1e9)
        parts = [conversations] if not split else [[one] for one in conversations]
        images = (
            [ImagePack((target(0), target(1)))] if not split else [ImagePack((target(0),)), ImagePack((target(1),))]
        )
        packs = [*images, *(AnswerPack(*answer_inputs(toy, part)) for part in parts)]
        result = step.step(packs, lr=1e-9)
        assert result.text > 0 < result.image
        both = (*model.named_parameters(), *toy.mllm.named_parameters())
        gradients.append({name: one.grad.clone() for name, one in both if one.grad is not None})
    toy.mllm.requires_grad_(False)
    for name, gradient in gradients[0].items():
        scale = max(gradient.abs().max().item(), 1e-3)
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)


def state(model: Omnigen2Transformer, optimizer: Optimizers, ema: Ema) -> dict[str, dict[str, Any]]:
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    moments = {f"{name}.{what}": value for name, one in trained.items() for what, value in optimizer.state[one].items()}
    model_state = {name: one.detach() for name, one in trained.items()}
    return {"model": model_state, "optimizer": moments, "ema": ema.state_dict()}


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit_and_keeps_its_average(tmp_path: Path, lora: bool) -> None:
    def parts() -> tuple[Omnigen2Transformer, Optimizers, Ema, Omnigen2Step]:
        model = omnigen2.model()
        if lora:
            add_adapter(model, rank=2, seed=1)
        optimizer = make_optimizer(model, OptimizerSettings(lr=1e-3))
        ema = Ema(model.named_parameters(), 0.5)
        return model, optimizer, ema, Omnigen2Step(ProcessGroup.single(), model, optimizer, ema=ema)

    def go(step: Omnigen2Step, numbers: range) -> None:
        for number in numbers:
            assert step.step([ImagePack((target(number), target(number + 1)))], lr=1e-3).taken

    model, optimizer, ema, step = parts()
    go(step, range(4))
    wanted = state(model, optimizer, ema)
    first = parts()
    go(first[3], range(2))
    group, settings = ProcessGroup.single(), CheckpointSettings(asynchronous=False)
    writer = Checkpointer(tmp_path, group, settings)
    writer.save(2, state(*first[:3]), {"step": 2})
    writer.finish()
    second = parts()
    Checkpointer(tmp_path, group, settings).load(2, state(*second[:3]))
    go(second[3], range(2, 4))
    found = state(*second[:3])
    for kind, tensors in wanted.items():
        for name, tensor in tensors.items():
            assert torch.equal(torch.as_tensor(found[kind][name]), torch.as_tensor(tensor)), (kind, name)
    raw, averaged = found["model"], found["ema"]
    assert averaged
    assert any(not torch.equal(torch.as_tensor(averaged[name]), raw[name]) for name in averaged if name in raw)


def drawn(seed: int) -> dict[str, Tensor]:
    group = start_process_group(ParallelSettings(), device="cpu", timeout_s=30)
    model = empty_transformer(omnigen2.CONFIG)
    parallelize(model, group, ParallelSettings(), dtype=torch.float32)
    init_transformer_sharded(model, seed, group, dtype=torch.float32)
    parameters = whole(model, group)
    stop_process_group()
    return parameters


def test_random_weights_are_the_same_on_any_number_of_ranks() -> None:
    found = ranks.run(drawn, 2, 7)[0]
    for name, parameter in init_transformer(omnigen2.CONFIG, seed=7).named_parameters():
        assert torch.equal(found[name], parameter), name


def test_a_run_that_would_start_from_omnigen2_is_refused_in_words(directory: str, tmp_path: Path) -> None:
    data = {"budget": 512, "corpora": [{"path": str(tmp_path)}]}
    config = TrainConfig(out=tmp_path / "run", steps=1, model={"path": directory}, data=data)
    with pytest.raises(ConfigError, match="is an OmniGen2 model, which sigma train does not train yet"):
        start_description(config)
