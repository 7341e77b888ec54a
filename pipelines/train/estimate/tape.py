"""What autograd keeps of a layer for its backward pass: a walk through the layer on sizes alone.

A number is kept only if some gradient that is wanted needs it, so a frozen layer keeps less than a trained one. Each
operation's docstring has its rule; sums, rotations and lookups keep nothing. A tensor that two operations keep counts
once.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor [rows, width]. `needs`: a gradient of it is wanted."""

    rows: float
    width: float
    needs: bool

    def copy(self, *, rows: float | None = None) -> Value:
        """Another tensor that is computed from this one; of other `rows` if given."""
        return Value(self.rows if rows is None else rows, self.width, self.needs)


class Tape:
    """The tensors that operations keep. `shapes` are those of all parameters, of which `trained` are trained."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], trained: Set[str]) -> None:
        self._shapes, self._trained = shapes, trained
        self._kept: set[Value] = set()

    @property
    def numbers(self) -> float:
        """How many numbers are kept."""
        return sum(one.rows * one.width for one in self._kept)

    def linear(self, name: str, x: Value) -> Value:
        """Keeps its input where its weight, or matrix A of its LoRA adapter, is trained; and A x where B is."""
        parts = ("weight", "bias", "lora_A.weight", "lora_B.weight")
        weight, bias, down, up = (f"{name}.{part}" in self._trained for part in parts)
        if weight or down:
            self._kept.add(x)
        if up:
            self._kept.add(Value(x.rows, self._shapes[f"{name}.lora_B.weight"][1], needs=True))
        return Value(x.rows, self._shapes[f"{name}.weight"][0], x.needs or weight or bias or down or up)

    def norm(self, name: str, x: Value) -> Value:
        """Keeps its input where that needs a gradient or the norm's weight is trained."""
        trained = f"{name}.weight" in self._trained
        if x.needs or trained:
            self._kept.add(x)
        return Value(x.rows, x.width, x.needs or trained)

    def norm_in_parts(self, name: str, x: Value, *, wide: float) -> Value:
        """As transformers computes it: keeps the input in float32, `wide` times its size, and what the weight scales.

        The first where the input needs a gradient, the second where the weight is trained.
        """
        trained = f"{name}.weight" in self._trained
        if x.needs:
            self._kept.add(x if wide == 1 else Value(x.rows, x.width * wide, needs=True))
        if trained:
            self._kept.add(x.copy())
        return Value(x.rows, x.width, x.needs or trained)

    def product(self, a: Value, b: Value) -> Value:
        """Number by number: keeps each factor where the other needs a gradient."""
        self._kept |= ({b} if a.needs else set()) | ({a} if b.needs else set())
        return Value(a.rows, a.width, a.needs or b.needs)

    def activation(self, x: Value) -> Value:
        """An activation function: keeps its input where that needs a gradient."""
        self._kept |= {x} if x.needs else set()
        return x.copy()

    def attention(self, q: Value, k: Value, v: Value) -> Value:
        """Keeps queries, keys, values and its result where one of the first three needs a gradient; never scores."""
        out = Value(q.rows, q.width, q.needs or k.needs or v.needs)
        self._kept |= {q, k, v, out} if out.needs else set()
        return out

    def gated_mlp(self, gate: str, up: str, down: str, x: Value) -> Value:
        """down(silu(gate(x)) * up(x))."""
        inner = self.product(self.activation(self.linear(gate, x)), self.linear(up, x))
        return self.linear(down, inner)

    @staticmethod
    def sum(a: Value, b: Value) -> Value:
        """Keeps nothing."""
        return Value(a.rows, a.width, a.needs or b.needs)

    def trains(self, module: str) -> bool:
        """Whether a module has trained parameters."""
        return any(name.startswith(f"{module}.") for name in self._trained)
