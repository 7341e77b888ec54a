"""Released names <-> ours, and safetensors in and out, one tensor at a time.

One table says which tensor is which. Loading compares every name and shape from the files' headers before it reads
any data, then reads plain bytes into the final tensors (no mmap: mapped pages would count as memory a second time).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor, nn

from sigma_data.errors import ConfigError
from sigma_data.files import with_temporary
from sigma_model.config import ModelConfig, refuse_shadow, weight_files
from sigma_model.embed import sincos_table
from sigma_model.model import SigmaModel

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What a tensor of weights may be stored as, by the names safetensors gives."""

CHUNK = 16 * 1024 * 1024
"""Bytes read or written at once where they change type or device on the way."""

INIT_STD = 0.02
PROJECTION = "attribute_projection.weight"
"""Ours alone; a file without it means zero."""

_VISION = ("vit_model.", "connector.", "vit_pos_embed.")

# Rows are (ours, released); {i} stands for a layer's number, {p} for weight and bias, {s} for the expert's suffix.
_EXPERT = (
    ("input_norm.weight", "input_layernorm{s}.weight"),
    ("q.{p}", "self_attn.q_proj{s}.{p}"),
    ("k.{p}", "self_attn.k_proj{s}.{p}"),
    ("v.{p}", "self_attn.v_proj{s}.{p}"),
    ("o.weight", "self_attn.o_proj{s}.weight"),
    ("q_norm.weight", "self_attn.q_norm{s}.weight"),
    ("k_norm.weight", "self_attn.k_norm{s}.weight"),
    ("post_norm.weight", "post_attention_layernorm{s}.weight"),
    ("mlp.gate.weight", "mlp{s}.gate_proj.weight"),
    ("mlp.up.weight", "mlp{s}.up_proj.weight"),
    ("mlp.down.weight", "mlp{s}.down_proj.weight"),
)
_VISION_LAYER = (
    *(("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2")),
    *((name, f"self_attn.{name}_proj") for name in ("q", "k", "v", "out")),
)
_TABLE = (
    ("backbone.embed.weight", "language_model.model.embed_tokens.weight"),
    *(
        (f"backbone.layers.{{i}}.{expert}.{ours}", f"language_model.model.layers.{{i}}.{theirs.replace('{s}', suffix)}")
        for expert, suffix in (("und", ""), ("gen", "_moe_gen"))
        for ours, theirs in _EXPERT
    ),
    ("backbone.norm_und.weight", "language_model.model.norm.weight"),
    ("backbone.norm_gen.weight", "language_model.model.norm_moe_gen.weight"),
    ("lm_head.weight", "language_model.lm_head.weight"),
    ("latent_in.{p}", "vae2llm.{p}"),
    ("latent_out.{p}", "llm2vae.{p}"),
    ("time_embedder.fc1.{p}", "time_embedder.mlp.0.{p}"),
    ("time_embedder.fc2.{p}", "time_embedder.mlp.2.{p}"),
    ("latent_positions", "latent_pos_embed.pos_embed"),
    ("vision.patch_embedding.{p}", "vit_model.vision_model.embeddings.patch_embedding.{p}"),
    ("vision.position_embedding.weight", "vit_model.vision_model.embeddings.position_embedding.weight"),
    *(
        (f"vision.layers.{{i}}.{ours}.{{p}}", f"vit_model.vision_model.encoder.layers.{{i}}.{theirs}.{{p}}")
        for ours, theirs in _VISION_LAYER
    ),
    ("vision.norm.{p}", "vit_model.vision_model.post_layernorm.{p}"),
    ("connector.fc1.{p}", "connector.fc1.{p}"),
    ("connector.fc2.{p}", "connector.fc2.{p}"),
    ("patch_positions", "vit_pos_embed.pos_embed"),
    (PROJECTION, PROJECTION),
)
_RELEASED = {a.replace("{p}", p): b.replace("{p}", p) for a, b in _TABLE for p in ("weight", "bias")}
_OURS = {released: ours for ours, released in _RELEASED.items()}
_LAYER = re.compile(r"\blayers\.(0|[1-9][0-9]*)\.")
_PATCH_EMBEDDING = _RELEASED["vision.patch_embedding.weight"]


def released_name(ours: str) -> str:
    """The name that a parameter or buffer of ours has in a released file. Raises ValueError for one we do not have."""
    name = _translate(ours, _RELEASED)
    if name is None:
        raise ValueError(f"{ours!r} is no parameter or buffer of a SigmaModel")
    return name


def our_name(released: str) -> str | None:
    """The name of ours for one in a released file; None where no model has such a tensor."""
    return _translate(released, _OURS)


def expected(model: nn.Module) -> dict[str, torch.Size]:
    """Released names and shapes of a model's parameters and persistent buffers."""
    return {released_name(name): tensor.shape for name, tensor in model.state_dict(keep_vars=True).items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: where its bytes lie (`start` up to `end`, from the file's beginning) and what they are."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Checkpoint:
    """The tensors in a directory's weight files, under released names, known from the headers; data is read on demand.

    Raises ConfigError where the directory has no weights, or a file is damaged or cut short.
    """

    def __init__(self, directory: Path) -> None:
        self.files = weight_files(directory)
        if not self.files:
            raise ConfigError(f"{directory}: has no ema.safetensors or model.safetensors: download the weights there")
        self.tensors: dict[str, Stored] = {}
        for path in self.files:
            for name, stored in _header(path).items():
                if name in self.tensors:
                    raise ConfigError(f"{path}: holds {name}, which {self.tensors[name].path.name} holds as well")
                self.tensors[name] = stored
        self._buffer = torch.empty(CHUNK, dtype=torch.uint8)

    @property
    def where(self) -> str:
        """The file, or the parts, as an error names them."""
        first = self.files[0]
        return str(first) if len(self.files) == 1 else f"{first.parent} ({len(self.files)} parts, {first.name} first)"

    def check(self, wanted: Mapping[str, torch.Size]) -> None:
        """Raise ConfigError unless the files hold these tensors, no other, in these shapes and of a floating type."""
        check_names(wanted, {name: stored.shape for name, stored in self.tensors.items()}, where=self.where)
        for name, stored in self.tensors.items():
            if stored.dtype not in DTYPES:
                kinds = ", ".join(DTYPES)
                raise ConfigError(f"{stored.path}: {name} is stored as {stored.dtype}: weights must be one of {kinds}")
            if stored.end - stored.start != math.prod(stored.shape) * DTYPES[stored.dtype].itemsize:
                raise ConfigError(f"{stored.path}: the header gives {name} a wrong number of bytes: download it again")

    def in_order(self) -> list[str]:
        """The names as the tensors lie in the files, so that reading never seeks back."""
        return sorted(self.tensors, key=lambda name: (self.tensors[name].path, self.tensors[name].start))

    def read(self, name: str, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Read one tensor in its stored shape; memory: the result, and no more than `CHUNK` on the way."""
        stored = self.tensors[name]
        source = DTYPES[stored.dtype]
        tensor = torch.empty(stored.shape, dtype=dtype, device=device)
        flat = tensor.view(-1)
        with stored.path.open("rb", buffering=0) as file:
            file.seek(stored.start)
            if source == dtype and tensor.device.type == "cpu":
                _fill(file, flat)
            else:
                for part in _parts(flat, CHUNK // source.itemsize):
                    piece = self._buffer[: part.numel() * source.itemsize].view(source)
                    _fill(file, piece)
                    part.copy_(piece)
        return tensor


def check_names(wanted: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], *, where: str) -> None:
    """Compare released names and shapes: a model's (`wanted`) with those in its files (`found`).

    The patch embedding may also have the shape of a convolution, and our attribute projection may be absent.
    Raises ConfigError that counts and names what is missing, unexpected or of another shape.
    """
    missing = [name for name in wanted if name not in found and name != PROJECTION]
    extra = sorted(found.keys() - wanted.keys())
    misshaped = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and list(found[name]) != list(shape) and not _is_convolution(name, found[name], shape)
    ]
    kinds = (("missing", missing), ("unexpected", extra), ("of another shape", misshaped))
    if faults := [_some(names, kind) for kind, names in kinds if names]:
        hint = _hint(missing, extra, found)
        raise ConfigError(f"{where}: does not fit the configuration: {'; '.join(faults)} ({hint})")


def load_model(
    directory: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    config: ModelConfig | None = None,
) -> SigmaModel:
    """Load a model from a directory in the released layout, all of it in `dtype` on `device`.

    `config` overrides what the directory's own JSON files say. Memory: one copy of the model and `CHUNK` bytes.
    Raises ConfigError where the directory, its configuration or its weights do not fit, before any data is read.
    """
    directory = Path(directory)
    with torch.device("meta"):
        model = SigmaModel(config or ModelConfig.from_directory(directory))
    load_weights(model, directory, dtype=dtype, device=device)
    return model


def load_weights(
    model: nn.Module, directory: Path, *, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
) -> None:
    """Fill a model that was built on the meta device; its parameters are replaced and keep `requires_grad`.

    Raises ConfigError as `load_model` does.
    """
    checkpoint = Checkpoint(Path(directory))
    wanted = expected(model)
    checkpoint.check(wanted)
    ours = {released_name(name): name for name in model.state_dict(keep_vars=True)}
    for name in checkpoint.in_order():
        tensor = checkpoint.read(name, dtype=dtype, device=device)
        if tensor.shape != wanted[name]:  # the patch embedding of a convolution: [D, 3, row, column]
            tensor = tensor.permute(0, 2, 3, 1).reshape(wanted[name])
        _assign(model, ours[name], tensor)
    if PROJECTION in wanted and PROJECTION not in checkpoint.tensors:
        _assign(model, PROJECTION, torch.zeros(wanted[PROJECTION], dtype=dtype, device=device))
    _assert_complete(model)


def export_model(
    model: SigmaModel, directory: Path, *, dtype: torch.dtype | None = None, name: str = "model.safetensors"
) -> None:
    """Write a model as a directory in the released layout: `name` with the weights, and the configuration files.

    `dtype` None keeps each tensor's own. Memory: `CHUNK` bytes more than the model. The weights appear by rename.
    Raises ConfigError where the files cannot be written, or others that lie there would be read instead.
    """
    directory = Path(directory)
    refuse_shadow(directory, name)
    tensors = {released_name(ours): tensor for ours, tensor in model.state_dict().items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_tensors(directory / name, tensors, dtype=dtype)
        model.config.write(directory)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{directory}: cannot be written ({reason}): free space or choose another place") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file, one tensor after the other; the same tensors give the same bytes. Raises OSError."""
    kinds = {kind: name for name, kind in DTYPES.items()}
    types = {name: dtype or tensor.dtype for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (-types[name].itemsize, name))  # so that every tensor lies aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * types[name].itemsize
        header[name] = {"dtype": kinds[types[name]], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                for part in _parts(tensors[name].detach().reshape(-1), CHUNK // types[name].itemsize):
                    file.write(_bytes_of(part.to(device="cpu", dtype=types[name])))
            file.flush()
            os.fsync(file.fileno())

    with_temporary(path, write)


def init_model(
    config: ModelConfig, *, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> SigmaModel:
    """A model to train from scratch: linear and embedding weights normal (std 0.02), norms one, biases zero.

    `latent_out` and the attribute projection start at zero, so that the first prediction is zero and not noise.
    Every tensor draws from its own generator, keyed by seed and name, on the CPU and in float32: the same numbers
    (rounded to `dtype`) on every device and whatever other parts the model has. The global generators stay untouched.
    """
    with torch.device("meta"):
        model = SigmaModel(config)
    width = config.language.hidden_size
    for name, empty in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if name == "latent_positions":
            tensor = sincos_table(config.latent.grid, width)
        elif name == "patch_positions":
            assert config.vision is not None
            tensor = sincos_table(config.vision.grid, width)
        elif leaf == "bias" or owner == "latent_out" or name == PROJECTION:
            tensor = torch.zeros(empty.shape)
        elif "norm" in owner.rpartition(".")[2]:
            tensor = torch.ones(empty.shape)
        else:
            digest = hashlib.sha256(f"{seed}/{released_name(name)}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
            tensor = torch.randn(empty.shape, generator=generator) * INIT_STD
        _assign(model, name, tensor.to(device=device, dtype=dtype))
    _assert_complete(model)
    return model


def _translate(name: str, table: Mapping[str, str]) -> str | None:
    layer = _LAYER.search(name)
    if layer is None:
        return table.get(name) if "{" not in name else None
    found = table.get(_LAYER.sub("layers.{i}.", name, count=1))
    return found and found.replace("{i}", layer[1])


def _header(path: Path) -> dict[str, Stored]:
    """What a safetensors file holds. Raises ConfigError where it is damaged or shorter than its header says."""
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > min(100_000_000, total - 8):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(size))
        tensors = {}
        for name, entry in header.items():
            if name != "__metadata__":
                shape = tuple(int(side) for side in entry["shape"])
                start, end = (8 + size + int(offset) for offset in entry["data_offsets"])
                if min(shape, default=0) < 0 or not 8 + size <= start <= end:
                    raise ValueError(f"{name} has an impossible place")
                tensors[name] = Stored(path, str(entry["dtype"]), shape, start, end)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path}: not a safetensors file ({error}): download it again") from None
    promised = max((stored.end for stored in tensors.values()), default=0)
    if promised > total:
        raise ConfigError(f"{path}: is cut short: {total:,} bytes of {promised:,}: download it again")
    return tensors


def _fill(file: FileIO, flat: Tensor) -> None:
    """Read the next bytes of a file straight into a contiguous tensor on the CPU."""
    memory = _bytes_of(flat)
    while memory:
        count = file.readinto(memory)
        if not count:  # checked before; somebody shortened the file since
            raise ConfigError(f"{file.name}: ends before its header says: download it again")
        memory = memory[count:]


def _bytes_of(flat: Tensor) -> memoryview:
    """The memory of a contiguous one-dimensional tensor on the CPU, shared."""
    return flat.view(torch.uint8).numpy().data


def _parts(flat: Tensor, size: int) -> Iterator[Tensor]:
    return (flat[start : start + size] for start in range(0, len(flat), size))


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    old = getattr(owner, leaf)
    is_parameter = isinstance(old, nn.Parameter)
    setattr(owner, leaf, nn.Parameter(tensor, requires_grad=old.requires_grad) if is_parameter else tensor)


def _assert_complete(model: nn.Module) -> None:
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    assert not left, f"still on the meta device: {left}"


def _is_convolution(name: str, found: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a patch embedding is stored as [D, 3, side, side] where a model has [D, side * side * 3]."""
    square = len(found) == 4 and found[1] == 3 and found[2] == found[3]
    return name == _PATCH_EMBEDDING and square and [found[0], 3 * found[2] ** 2] == list(shape)


def _hint(missing: Sequence[str], extra: Sequence[str], found: Mapping[str, object]) -> str:
    """What to do about names that do not fit."""
    lacks_vision, surplus = (any(name.startswith(_VISION) for name in names) for names in (missing, extra))
    if lacks_vision and not any(name.startswith(_VISION) for name in found):
        return "these weights only generate; their configuration must have no vision encoder"
    if lacks_vision or (surplus and not any(name.startswith("vit_model.") for name in found)):
        return "the tensors of the vision encoder must be there all or not at all"
    if surplus:
        return "is vit_config.json missing beside the weights?"
    return "llm_config.json and vit_config.json must be those that came with the weights"


def _some(names: Sequence[str], kind: str, limit: int = 3) -> str:
    """How many there are, and the first few."""
    count = f"{len(names):,} tensor{'s' if len(names) > 1 else ''}"
    return f"{count} {kind}: {', '.join(names[:limit])}{', ...' if len(names) > limit else ''}"
