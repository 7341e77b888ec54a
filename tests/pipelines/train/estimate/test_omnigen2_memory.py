"""OmniGen2's estimate is what a run has: states to the byte, kept activations within a twentieth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import corpora
from support.sequences import one_thread  # noqa: F401
from torch import Tensor, nn

from pipelines.common.planner import open_planner
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.process_group import ProcessGroup
from pipelines.train.ema import Ema
from pipelines.train.omnigen2.batch import Omnigen2Batch
from pipelines.train.omnigen2.build import build_backbone, dataset_of
from pipelines.train.omnigen2.cost import counts_of
from pipelines.train.omnigen2.description import describe_omnigen2
from pipelines.train.omnigen2.estimate import EpochCounts, Omnigen2Memory, Parameters, estimate
from pipelines.train.optimizer import make_optimizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "corpus"
    corpora.build(folder, "world:24?size=64", "world:12?size=64&families=understanding:1&name=asked")
    return folder


def config_of(corpus: Path, **changes: Any) -> TrainConfig:
    images = ["compositional", "selective", "stylization", "relation", "editing", "layout"]
    families = {} if changes.get("omnigen2", {}).get("train_mllm") else {"families": images}
    values = {
        "out": "x", "steps": 1, "model": {"path": "omnigen2-tiny", "dtype": "float32"},
        "data": {"corpora": [{"path": str(corpus), **families}], "budget": 3000, "dropout": {"text": 0, "latent": 0}},
        "loss": {"text": 1.0}, **changes,
    }  # fmt: skip
    return TrainConfig.model_validate(values)


class FusedNorm(torch.autograd.Function):
    """Keeps of a norm what a GPU's kernel keeps: its input. On a CPU PyTorch keeps a second tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.rms_norm(x, (x.shape[-1],), weight, eps)


def bytes_of(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


ARMS: dict[str, dict[str, Any]] = {
    "transformer": {},
    "lora": {"lora": {"rank": 4, "alpha": 4.0}, "ema": None},
    "lora in queries": {"lora": {"rank": 4, "alpha": 4.0, "targets": ["to_q"]}, "ema": None},
    "lora and attribute tokens": {
        "lora": {"rank": 4, "alpha": 4.0},
        "omnigen2": {"attribute_tokens": True},
        "ema": None,
    },
    "mllm, vit frozen": {"omnigen2": {"train_mllm": True, "route": "mllm"}, "freeze": {"vit": True}},
    "main layers frozen": {"freeze": {"patterns": [r"transformer\.layers\."]}},
    "sgt": {"omnigen2": {"train_mllm": True, "route": "mllm"}},
}


@pytest.mark.parametrize("arm", ARMS)
def test_states_are_estimated_to_the_byte_and_kept_activations_within_a_twentieth(
    corpus: Path, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.RMSNorm, "forward", lambda self, x: FusedNorm.apply(x, self.weight, self.eps))
    config = config_of(corpus, **ARMS[arm])
    description = describe_omnigen2(config.model.path, config.omnigen2)
    planner = open_planner(config.data, description)
    backbone = build_backbone(config, description, ProcessGroup.single(), dtype=torch.float32)
    model = backbone.model
    trainable = {name: one for name, one in model.named_parameters() if one.requires_grad}
    optimizer = make_optimizer(model, config.optimizer)
    for parameter in trainable.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    found = estimate(config, description, EpochCounts.of(planner, description), ranks=1, on_gpu=False)
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert found.memory["parameters"] == bytes_of(*model.parameters())
    assert found.memory["gradients"] == bytes_of(*trainable.values())
    assert found.memory["optimiser"] == bytes_of(*moments)
    average = Ema(model.named_parameters(), config.ema.decay).state_dict().values() if config.ema else ()
    assert found.memory["average (EMA)"] == bytes_of(*average)

    dataset = dataset_of(config, description, planner)
    batch = dataset[planner.plan(0).ticket(0)].batch
    assert isinstance(batch, Omnigen2Batch)
    kept: dict[int, int] = {}
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        mask = tensor.dtype == torch.bool or (
            tensor.ndim == 4 and tensor.shape[1] == 1 and tensor.shape[2] == tensor.shape[3]
        )
        if storage.data_ptr() not in own and tensor.dtype != torch.bool and not mask:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = backbone.losses(batch)
    assert losses.image.requires_grad
    counts = counts_of(batch, description)
    told = config.model_copy(update={"data": config.data.model_copy(update={"budget": counts.planned})})
    parameters = Parameters.of(config, description)
    parts = Omnigen2Memory(told, description, counts, parameters, ranks=1, on_gpu=False).parts()
    ratio = parts["activations"] / sum(kept.values())
    assert 0.95 < ratio < 1.05, f"{arm}: {ratio:.3f} of what is kept"
