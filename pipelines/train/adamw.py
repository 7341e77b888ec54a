"""AdamW for little memory: bfloat16 parameters, moments of 8 bits, moments in the memory of the CPU.

All arithmetic is float32; what is stored in fewer bits is rounded up or down at random, so that it is right on average:
a step of 2e-5 rounded to bfloat16's nearest would be lost for good, and a moment would stop decaying. The random bits
are a hash of parameter, step and place, so a run repeats itself to the bit when it is resumed, whatever its ranks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed.tensor as distributed
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipelines.train.distributed.sharded_tensor import held_rows, local_part
from sigma_model.torch_compat import sharded_like

BLOCK = 256
"""Numbers of a row that share the scale of an 8-bit moment; a shorter row is one block."""
_CHUNK = 2**22
"""Numbers that are worked on at once: what is in float32 for a moment takes no more than some 200 MB."""
_MASK = 2**32 - 1
_FIRST_OCTAVES, _SECOND_OCTAVES = 14, 40
"""How far below a block's largest the smallest 8-bit number lies, of the first and second moment."""


class LeanAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019), decoupled decay, as `torch.optim.AdamW` computes it.

    `names` are those of the parameters. `eight_bit` keeps both moments of matrices in 8 bits; of vectors they stay
    float32. `offload` keeps them in the memory of the CPU, from where a step streams them. Parameters may be float32
    or bfloat16, plain or sharded by rows. States are there from the start.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        names: Mapping[Tensor, str],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        eight_bit: bool,
        offload: bool,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        self._names, self._eight_bit, self._offload = names, eight_bit, offload

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is kept of a parameter: its step, on the CPU, and its moments, sharded as it is."""
        state = {"step": torch.zeros((), dtype=torch.float32)}
        for name in ("exp_avg", "exp_avg_sq"):
            if self._eight_bit and parameter.ndim > 1:
                state[name] = self._zeros(parameter, parameter.shape, torch.uint8)
                state[f"{name}_scale"] = self._zeros(parameter, scales_shape(parameter.shape), torch.float32)
            else:
                state[name] = self._zeros(parameter, parameter.shape, torch.float32)
        return state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_of(parameter, group)
        if self._offload and torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()  # a checkpoint reads what is being copied to the CPU

    def _step_of(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] += 1
        number = int(state["step"])
        part, gradient = local_part(parameter), local_part(parameter.grad)  # type: ignore[arg-type]
        moments = {name: local_part(tensor) for name, tensor in state.items() if name != "step"}
        name, first = self._names[parameter], held_rows(parameter)[0]
        width = math.prod(part.shape[1:])
        rows = max(1, _CHUNK // max(1, width))
        for start in range(0, len(part), rows):
            piece = slice(start, start + rows)
            count = part[piece].numel()
            bits = _Bits(f"{name}/{number}", (first + start) * width, count, part.device)
            kept = {key: value[piece].to(part.device, non_blocking=True) for key, value in moments.items()}
            mean, square = (self._read(kept, key) for key in ("exp_avg", "exp_avg_sq"))
            value = part[piece].float()
            slope = gradient[piece].float()
            _update(value, mean, square, slope, group, number)
            part[piece] = value if part.dtype == torch.float32 else to_bfloat16(value, bits.sixteen("parameter"))
            for key, moment in (("exp_avg", mean), ("exp_avg_sq", square)):
                for what, stored in self._packed(key, moment, bits, f"{key}_scale" in kept).items():
                    moments[what][piece].copy_(stored, non_blocking=True)

    def _read(self, kept: Mapping[str, Tensor], key: str) -> Tensor:
        if f"{key}_scale" not in kept:
            return kept[key]
        return (unpack_first if key == "exp_avg" else unpack_second)(kept[key], kept[f"{key}_scale"])

    def _packed(self, key: str, moment: Tensor, bits: _Bits, eight_bit: bool) -> dict[str, Tensor]:
        if not eight_bit:
            return {key: moment}
        chance = bits.chance(key).view(moment.shape)
        codes, scales = (pack_first if key == "exp_avg" else pack_second)(moment, chance)
        return {key: codes, f"{key}_scale": scales}

    def _zeros(self, parameter: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if not isinstance(parameter, DTensor):
            made = torch.zeros(shape, dtype=dtype, device="cpu" if self._offload else parameter.device)
            return made.pin_memory() if self._offload and parameter.is_cuda else made
        sharded = distributed.zeros(
            *shape, dtype=dtype, device_mesh=parameter.device_mesh, placements=parameter.placements
        )
        if parameter.device.type == sharded.device.type and not self._offload:
            return sharded
        there = sharded.to_local().cpu()  # not DTensor's own way, which moves it to the device of the mesh
        there = there.pin_memory() if torch.cuda.is_available() else there
        return sharded_like(there, sharded)


def moment_bytes(shape: Sequence[int], *, eight_bit: bool) -> int:
    """Bytes of both moments of a parameter."""
    size = math.prod(shape)
    return 2 * size + 8 * math.prod(scales_shape(shape)) if eight_bit and len(shape) > 1 else 8 * size


def scales_shape(shape: Sequence[int]) -> tuple[int, int]:
    """[rows, blocks of a row]: a row is never cut between ranks, so any number of ranks has the same blocks."""
    return shape[0], math.ceil(math.prod(shape[1:]) / BLOCK)


def _update(value: Tensor, mean: Tensor, square: Tensor, slope: Tensor, group: Mapping[str, Any], number: int) -> None:
    """Step number `number` of AdamW, in place, all float32."""
    (first, second), lr = group["betas"], group["lr"]
    value.mul_(1 - lr * group["weight_decay"])
    mean.lerp_(slope, 1 - first)
    square.mul_(second).addcmul_(slope, slope, value=1 - second)
    bottom = square.sqrt().div_(math.sqrt(1 - second**number)).add_(group["eps"])
    value.addcdiv_(mean, bottom, value=-lr / (1 - first**number))


class _Bits:
    """Random bits for each number of a piece of a parameter, which begins at number `first`."""

    def __init__(self, key: str, first: int, count: int, device: torch.device) -> None:
        self._key, self._first, self._count, self._device = key, first, count, device

    def _hash(self, use: str) -> Tensor:
        """[count] int64 below 2^32: two rounds of Wellons' lowbias32 over place and key."""
        digest = hashlib.sha256(f"{self._key}/{use}".encode()).digest()
        x = torch.arange(self._first, self._first + self._count, device=self._device, dtype=torch.int64)
        for half in (digest[:4], digest[4:8]):
            x = (x ^ int.from_bytes(half, "little")) & _MASK
            x ^= x >> 16
            x = (x * 0x7FEB352D) & _MASK
            x ^= x >> 15
            x = (x * 0x846CA68B) & _MASK
            x ^= x >> 16
        return x

    def sixteen(self, use: str) -> Tensor:
        """[count] int32 below 2^16."""
        return (self._hash(use) >> 16).int()

    def chance(self, use: str) -> Tensor:
        """[count] float32 in (0, 1)."""
        return ((self._hash(use) >> 9).float() + 0.5) / 2**23


def to_bfloat16(value: Tensor, bits: Tensor) -> Tensor:
    """Round float32 to one of its two neighbours in bfloat16, to the nearer more often, so that the mean is right.

    `bits` [as many] int32 below 2^16. Infinities and NaN stay what they are.
    """
    raw = value.contiguous().view(torch.int32)
    rounded = ((raw + bits.view(raw.shape)) & -65536).view(torch.float32)
    return torch.where(value.isfinite(), rounded, value).to(torch.bfloat16)


def pack_first(moment: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """A first moment [r, c] as codes [r, c] uint8 and scales [r, blocks]: sign, and 127 steps of 1/9 octave.

    What lies between two steps, or below the smallest, becomes either at random, right on average.
    """
    scales = _scales(moment.abs())
    code = _code(moment.abs() / _divisor(scales, moment), _levels(127, _FIRST_OCTAVES, moment.device), 0, chance)
    return code + 128 * (moment < 0).to(torch.uint8), scales


def unpack_first(codes: Tensor, scales: Tensor) -> Tensor:
    """What `pack_first` has packed, float32."""
    size = _levels(127, _FIRST_OCTAVES, codes.device)[(codes & 127).long()]
    return torch.where(codes > 127, -size, size) * _spread(scales, codes)


def pack_second(moment: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """A second moment [r, c] as codes [r, c] uint8 and scales [r, blocks]: 255 steps of about 1/6 octave.

    Between two steps it becomes either at random, right on average. Below the smallest it becomes that: were it ever
    zero, a step would be the first moment divided by eps, which is 1e-15 in SIGMA's recipe.
    """
    scales = _scales(moment)
    code = _code(moment / _divisor(scales, moment), _levels(255, _SECOND_OCTAVES, moment.device), 1, chance)
    return code * (moment > 0), scales


def unpack_second(codes: Tensor, scales: Tensor) -> Tensor:
    """What `pack_second` has packed, float32."""
    return _levels(255, _SECOND_OCTAVES, codes.device)[codes.long()] * _spread(scales, codes)


@cache
def _levels(most: int, octaves: int, device: torch.device) -> Tensor:
    """[most + 1] 0, then as many steps of one ratio up to 1.

    Looked up, not computed from codes: logarithms of the CPU depend in their last bit on where a number stands.
    """
    steps = [2.0 ** ((code - most) * octaves / (most - 1)) for code in range(1, most + 1)]
    return torch.tensor([0.0, *steps], dtype=torch.float32, device=device)


def _code(size: Tensor, levels: Tensor, least: int, chance: Tensor) -> Tensor:
    """The place of sizes in [0, 1] among levels, one of the two neighbours at random; none below `least`."""
    low = (torch.bucketize(size, levels, right=True) - 1).clamp_(least, len(levels) - 2)
    below, above = levels[low], levels[low + 1]
    return (low + (chance < (size - below) / (above - below))).to(torch.uint8)


def _scales(sizes: Tensor) -> Tensor:
    """[r, c] >= 0 -> [r, blocks]: the largest of every block."""
    rows, columns = len(sizes), math.prod(sizes.shape[1:])
    block = min(BLOCK, columns)
    padded = torch.nn.functional.pad(sizes.reshape(rows, columns), (0, -columns % block))
    return padded.view(rows, -1, block).amax(-1)


def _divisor(scales: Tensor, like: Tensor) -> Tensor:
    """The scales spread out, 1 in blocks of zeros."""
    return _spread(torch.where(scales > 0, scales, 1.0), like)


def _spread(scales: Tensor, like: Tensor) -> Tensor:
    """[r, blocks] -> [r, c] of the shape of `like`."""
    columns = math.prod(like.shape[1:])
    wide = scales.repeat_interleave(min(BLOCK, columns), dim=1)[:, :columns]
    return wide.reshape(like.shape)
