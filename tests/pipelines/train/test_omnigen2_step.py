"""OmniGen2's steps mean the same however samples are packed, and random weights are the same on any ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support import corpora, omnigen2, ranks
from torch import Tensor

from pipelines.common.planner import open_planner
from pipelines.train.config import ParallelSettings, TrainConfig
from pipelines.train.distributed.parallelize import parallelize
from pipelines.train.distributed.process_group import ProcessGroup, start_process_group, stop_process_group
from pipelines.train.omnigen2.batch import AnswerSample, ImageSample
from pipelines.train.omnigen2.build import build_backbone, dataset_of
from pipelines.train.omnigen2.description import describe_omnigen2
from pipelines.train.omnigen2.weights import init_transformer_sharded
from pipelines.train.train_step import StepResult, TrainStep
from sigma_data.loading.loader import Loaded
from sigma_data.sample import Family
from sigma_model.omnigen2.checkpoint import empty_transformer, init_transformer

ALONE = ProcessGroup.single()
Samples = Sequence[ImageSample | AnswerSample]


class Plain(torch.optim.SGD):
    """p <- p - gradient: what a step did shows the gradient itself."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("step") / "corpus"
    corpora.build(folder, "world:8?size=64", "world:4?size=64&families=understanding:1&name=asked")
    return folder


def config_of(corpus: Path, **changes: Any) -> TrainConfig:
    values = {
        "out": "x", "steps": 1, "model": {"path": "omnigen2-tiny"}, "optimizer": {"clip": 1e9},
        "data": {"corpora": [{"path": str(corpus)}], "budget": 4000, "dropout": {"text": 0, "latent": 0}},
        "omnigen2": {"train_mllm": True}, **changes,
    }  # fmt: skip
    return TrainConfig.model_validate(values)


def read(config: TrainConfig) -> tuple[Any, Any, list[ImageSample | AnswerSample]]:
    description = describe_omnigen2(config.model.path, config.omnigen2)
    planner = open_planner(config.data, description)
    dataset = dataset_of(config, description, planner)
    plan = planner.plan(0)
    samples = [dataset.read_sample(entry) for pack in range(len(plan)) for entry in plan.ticket(pack).entries]
    return description, dataset, [one for one in samples if isinstance(one, ImageSample | AnswerSample)]


def step(config: TrainConfig, packs: Sequence[Samples]) -> tuple[dict[str, Tensor], StepResult]:
    """What one step on these packs takes off each parameter."""
    description, dataset, _ = read(config)
    backbone = build_backbone(config, description, ALONE, dtype=torch.float32)
    names = dict(backbone.model.named_parameters())
    for name, parameter in names.items():  # a fresh model's last layer is zero, and so would most gradients be
        generator = torch.Generator().manual_seed(len(name))
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    before = {name: parameter.detach().clone() for name, parameter in names.items()}
    loaded = []
    for pack in packs:
        batch, images = dataset.collate(pack)
        loaded.append(Loaded(batch, (Family.EDITING,) * len(pack), 0, 0, (), images, 0, 0.0))
    optimizer: Any = Plain(names.values(), lr=1.0)
    done = TrainStep(config, ALONE, backbone, optimizer, None).step(loaded, 1.0)
    return {name: before[name] - parameter.detach() for name, parameter in names.items()}, done


@pytest.mark.slow
def test_packs_that_are_accumulated_are_one_pack(corpus: Path) -> None:
    """Not the sum of their means, as the reference has it; not the mean of their means, for sizes differ.

    So images and answers weigh as `loss` says, however they are packed: some packs have images alone, or answers.
    """
    config = config_of(corpus, loss={"image": 1.0, "text": 0.5})
    _, _, samples = read(config)
    told = [one for one in samples if isinstance(one, AnswerSample)]
    made = [one for one in samples if isinstance(one, ImageSample)]
    assert len({one.noise.shape for one in made} | {len(one.ids) for one in told}) > 2
    whole, one = step(config, [samples])
    assert one.taken
    for packs in ([made, told], [made[:1], made[1:3], [*told, *made[3:]]], [[sample] for sample in samples]):
        parts, other = step(config, packs)
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        for name, gradient in whole.items():
            scale = max(gradient.abs().max().item(), 1e-2)
            torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


@pytest.mark.slow
def test_the_maps_loss_reaches_the_language_model_and_long_answers_do_not_drown_short_ones(corpus: Path) -> None:
    config = config_of(corpus, omnigen2={"train_mllm": True, "route": "mllm"}, loss={"text": 1.0})
    _, _, samples = read(config)
    made = [one for one in samples if isinstance(one, ImageSample) and one.shown.grids is not None]
    gradients, _ = step(config, [made[:2]])
    for part in ("mllm.model.language_model.layers.0", "mllm.model.visual.blocks.0", "transformer.layers.0"):
        assert any(name.startswith(part) and bool(gradient.any()) for name, gradient in gradients.items()), part
    description, dataset, samples = read(config)
    backbone = build_backbone(config, description, ALONE, dtype=torch.float32)
    told = [one for one in samples if isinstance(one, AnswerSample)]
    batch, _ = dataset.collate(told)
    learnt = sum(int((torch.tensor(one.labels)[1:] >= 0).sum()) for one in told)
    weight = float(backbone.counts(batch)[1])
    roots = 0.0
    for one in told:
        runs = "".join("x" if label >= 0 else " " for label in one.labels[1:]).split()
        roots += sum(len(run) ** 0.5 for run in runs)
    assert weight == pytest.approx(roots) and weight < learnt, "each answer counts as the root of its length"


def whole(model: torch.nn.Module, group: ProcessGroup) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in ranks.full_state_on_rank0(dict(model.named_parameters()), group)}


def drawn(seed: int) -> dict[str, Tensor]:
    group = start_process_group(ParallelSettings(), device="cpu", timeout_s=30)
    model = empty_transformer(omnigen2.CONFIG)
    parallelize(model, group, ParallelSettings(), dtype=torch.float32)
    init_transformer_sharded(model, seed, group, dtype=torch.float32)
    parameters = whole(model, group)
    stop_process_group()
    return parameters


@pytest.mark.slow
def test_random_weights_are_the_same_on_any_number_of_ranks() -> None:
    found = ranks.run(drawn, 2, 7)[0]
    for name, parameter in init_transformer(omnigen2.CONFIG, seed=7).named_parameters():
        assert torch.equal(found[name], parameter), name
