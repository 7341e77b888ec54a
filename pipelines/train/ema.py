"""EMA: an exponential moving average of the trainable parameters, in float32, sharded as they are.

All arithmetic is on each rank's own part, so it needs neither communication nor DTensor's planning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pipelines.train.distributed.sharded_tensor import local_part
from sigma_model.torch_compat import lerp_all


class Ema:
    """Averages a <- decay * a + (1 - decay) * p of the trainable parameters p among those given; they start as p.

    To be made after the model is sharded. Memory: 4 bytes a trainable parameter of this rank.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self._parameters = {name: parameter for name, parameter in parameters if parameter.requires_grad}
        self._averages = {
            name: parameter.detach().to(torch.float32, copy=True) for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are after a step."""
        pairs = list(
            zip(map(local_part, self._averages.values()), map(local_part, self._parameters.values()), strict=True)
        )
        if same := [pair for pair in pairs if pair[1].dtype == torch.float32]:
            lerp_all([average for average, _ in same], [own for _, own in same], 1 - self.decay)
        for average, parameter in pairs:
            if parameter.dtype != torch.float32:
                average.lerp_(parameter.float(), 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name, no copies; DTensors where the parameters are."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over averages that are sharded as these are."""
        assert state.keys() == self._averages.keys(), "not the averages of these parameters"
        for name, average in self._averages.items():
            local_part(average).copy_(local_part(state[name]))

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Have the averages in the model, rounded to its type; afterwards its parameters are back, bit for bit.

        For validation and sampling: nothing may be trained meanwhile. Memory: a second copy of this rank's
        part of the trainable parameters.
        """
        with torch.no_grad():  # around each part: the caller's block keeps its own mode
            held = [local_part(parameter).clone() for parameter in self._parameters.values()]
        try:
            self._put(model, self._averages.values())
            yield
        finally:
            self._put(model, held)

    @torch.no_grad()
    def _put(self, model: nn.Module, values: Iterable[Tensor]) -> None:
        for parameter, value in zip(self._parameters.values(), values, strict=True):
            local_part(parameter).copy_(local_part(value))
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the root keeps what it gathered for a forward pass, and would use it again
