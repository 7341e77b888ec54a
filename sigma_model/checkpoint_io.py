"""Weights in safetensors in and out, one tensor at a time.

Loading compares every name and shape from the files' headers before it reads any data, then reads plain bytes
into the final tensors (no mmap: mapped pages would count as memory a second time).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor, nn

from sigma_data.errors import ConfigError
from sigma_data.storage.files import with_temporary
from sigma_model.config import ModelConfig, refuse_shadow, weight_files
from sigma_model.initialization import fresh_tensor
from sigma_model.io_progress import note_bytes
from sigma_model.model import SigmaModel
from sigma_model.model_files import StoredTensor, refuse_wrapped, weight_tensors
from sigma_model.position_extension import extended_table, may_extend
from sigma_model.state_dict_adapter import PATCH_EMBEDDING, PROJECTION, unwrapped
from sigma_model.state_dict_adapter import our_name as our_name
from sigma_model.state_dict_adapter import released_name as released_name

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What a tensor of weights may be stored as, by the names safetensors gives."""

CHUNK = 16 * 1024 * 1024
"""Bytes read or written at once where they change type or device on the way."""

_EMBEDDINGS, _HEAD = released_name("backbone.embed.weight"), released_name("lm_head.weight")
_POSITIONS = released_name("latent_positions")
_AVERAGED_STEPS = "n_averaged"
"""What torch's AveragedModel stores beside the weights; its number is of no use here."""

_VISION = ("vit_model.", "connector.", "vit_pos_embed.")


def expected(model: nn.Module) -> dict[str, torch.Size]:
    """Released names and shapes of a model's parameters and persistent buffers."""
    return {released_name(name): tensor.shape for name, tensor in model.state_dict(keep_vars=True).items()}


class Checkpoint:
    """The tensors in a directory's weight files, under released names, known from the headers; data is read on demand.

    Without `vision` those of the vision encoder are taken as not there. What `config` says about the files holds:
    prefixes are stripped from names, and a text head that is tied and not stored is the embeddings. Raises ConfigError
    where the directory has no weights, a file is damaged or cut short, or names bear prefixes that are not to be
    stripped.
    """

    def __init__(self, directory: Path, *, vision: bool = True, config: ModelConfig | None = None) -> None:
        self.files = weight_files(directory)
        if not self.files:
            raise ConfigError(f"{directory}: has no ema.safetensors or model.safetensors: download the weights there")
        self.tensors: dict[str, StoredTensor] = {}
        strip = config.strip_prefix if config is not None else ()
        for full, stored in weight_tensors(directory, complete=True).items():
            name = unwrapped(full, strip)
            if strip and name == _AVERAGED_STEPS:
                continue
            if name in self.tensors:  # with its prefix and without
                raise ConfigError(f"{stored.path}: holds {name}, which {self.tensors[name].path.name} holds as well")
            if vision or not name.startswith(_VISION):
                self.tensors[name] = stored
        refuse_wrapped(self.tensors, directory)
        if config is not None and config.language.tie_word_embeddings and _EMBEDDINGS in self.tensors:
            self.tensors.setdefault(_HEAD, self.tensors[_EMBEDDINGS])
        self._buffer = torch.empty(CHUNK, dtype=torch.uint8)
        self._grid = 0

    @property
    def where(self) -> str:
        """The file, or the parts, as an error names them."""
        first = self.files[0]
        return str(first) if len(self.files) == 1 else f"{first.parent} ({len(self.files)} parts, {first.name} first)"

    def check(self, wanted: Mapping[str, torch.Size]) -> None:
        """Raise ConfigError unless the files hold these tensors, no other, in these shapes and of a floating type."""
        shapes = {name: stored.shape for name, stored in self.tensors.items()}
        table = wanted.get(_POSITIONS)
        if table is not None and may_extend(shapes.get(_POSITIONS, ()), table):  # a larger grid than was released
            shapes[_POSITIONS], self._grid = tuple(table), math.isqrt(table[0])
        check_names(wanted, shapes, where=self.where)
        check_stored(self.tensors)

    def in_order(self) -> list[str]:
        """The names as the tensors lie in the files, so that reading never seeks back."""
        return sorted(self.tensors, key=lambda name: (self.tensors[name].path, self.tensors[name].start))

    def read(
        self,
        name: str,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        rows: tuple[int, int] | None = None,
    ) -> Tensor:
        """Read one tensor, or its `rows` [first, last) alone; a convolution comes as the matrix that a model has.

        The table of latents' positions comes as large as `check` wanted it. Memory: the result, and no more than
        `CHUNK` on the way (a convolution is copied once, such a table twice). Raises ConfigError as `extended_table`.
        """
        if name == _POSITIONS and self._grid:
            grid, self._grid = self._grid, 0
            table = extended_table(self.read(name, dtype=torch.float32), grid, where=self.where)
            self._grid = grid
            return table[slice(*rows) if rows is not None else slice(None)].to(device=device, dtype=dtype)
        tensor = read_stored(self.tensors[name], dtype=dtype, device=device, rows=rows, buffer=self._buffer)
        if tensor.ndim == 4:  # [D, 3, row, column], as `check` lets pass for the patch embedding alone
            tensor = tensor.permute(0, 2, 3, 1).flatten(1)
        return tensor


def read_stored(
    stored: StoredTensor,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    rows: tuple[int, int] | None = None,
    buffer: Tensor | None = None,
) -> Tensor:
    """Read one tensor of a file, or its `rows` [first, last) alone. Raises ConfigError where the file has shrunk.

    Memory: the result and `buffer`, which is `CHUNK` bytes of our own where none is given.
    """
    source = DTYPES[stored.dtype]
    shape, start = list(stored.shape), stored.start
    if rows is not None:
        start += rows[0] * math.prod(shape[1:]) * source.itemsize
        shape[0] = rows[1] - rows[0]
    tensor = torch.empty(shape, dtype=dtype, device=device)
    flat = tensor.view(-1)
    with stored.path.open("rb", buffering=0) as file:
        file.seek(start)
        if source == dtype and tensor.device.type == "cpu":
            _fill(file, flat)
            return tensor
        buffer = torch.empty(CHUNK, dtype=torch.uint8) if buffer is None else buffer
        for part in _parts(flat, CHUNK // source.itemsize):
            piece = buffer[: part.numel() * source.itemsize].view(source)
            _fill(file, piece)
            part.copy_(piece)
    return tensor


def check_stored(tensors: Mapping[str, StoredTensor]) -> None:
    """Raise ConfigError unless every tensor is of floats and has the bytes that its shape asks for."""
    for name, stored in tensors.items():
        if stored.dtype not in DTYPES:
            kinds = ", ".join(DTYPES)
            raise ConfigError(f"{stored.path}: {name} is stored as {stored.dtype}: weights must be one of {kinds}")
        if stored.end - stored.start != math.prod(stored.shape) * DTYPES[stored.dtype].itemsize:
            raise ConfigError(f"{stored.path}: the header gives {name} a wrong number of bytes: download it again")


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
    if faults := [counted(names, kind) for kind, names in kinds if names]:
        hint = _hint(missing, extra, found)
        raise ConfigError(f"{where}: does not fit the configuration: {'; '.join(faults)} ({hint})")


def load_model(
    directory: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    config: ModelConfig | None = None,
    vision: bool = True,
) -> SigmaModel:
    """Load a model from a directory in the released layout, all of it in `dtype` on `device`.

    `config` overrides what the directory's own JSON files say. Without `vision`, where `config` has no vision encoder,
    the files may hold one all the same, and it is left out. Memory: one copy of the model and `CHUNK` bytes.
    Raises ConfigError where the directory, its configuration or its weights do not fit, before any data is read.
    """
    directory = Path(directory)
    with torch.device("meta"):
        model = SigmaModel(config or ModelConfig.from_directory(directory))
    load_weights(model, directory, dtype=dtype, device=device, vision=vision)
    return model


def load_weights(
    model: nn.Module,
    directory: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    vision: bool = True,
) -> None:
    """Fill a model that was built on the meta device; its parameters are replaced and keep `requires_grad`.

    `vision` as in `load_model`. Raises ConfigError as `load_model` does.
    """
    config = model.config if isinstance(model, SigmaModel) else None
    checkpoint = Checkpoint(Path(directory), vision=vision, config=config)
    wanted = expected(model)
    checkpoint.check(wanted)
    ours = {released_name(name): name for name in model.state_dict(keep_vars=True)}
    for name in checkpoint.in_order():
        assign(model, ours[name], checkpoint.read(name, dtype=dtype, device=device))
    if PROJECTION in wanted and PROJECTION not in checkpoint.tensors:
        assign(model, PROJECTION, torch.zeros(wanted[PROJECTION], dtype=dtype, device=device))
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
                    note_bytes(part.numel() * types[name].itemsize)
            file.flush()
            os.fsync(file.fileno())

    with_temporary(path, write)


def init_model(
    config: ModelConfig, *, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> SigmaModel:
    """A model to train from scratch, every tensor as `fresh_tensor` draws it."""
    with torch.device("meta"):
        model = SigmaModel(config)
    for name, empty in model.state_dict().items():
        assign(model, name, fresh_tensor(config, name, empty.shape, seed=seed).to(device=device, dtype=dtype))
    _assert_complete(model)
    return model


def _fill(file: FileIO, flat: Tensor) -> None:
    """Read the next bytes of a file straight into a contiguous tensor on the CPU."""
    memory = _bytes_of(flat)
    while memory:
        count = file.readinto(memory)
        note_bytes(count or 0)
        if not count:  # checked before; somebody shortened the file since
            raise ConfigError(f"{file.name}: ends before its header says: download it again")
        memory = memory[count:]


def _bytes_of(flat: Tensor) -> memoryview:
    """The memory of a contiguous one-dimensional tensor on the CPU, shared."""
    return flat.view(torch.uint8).numpy().data


def _parts(flat: Tensor, size: int) -> Iterator[Tensor]:
    return (flat[start : start + size] for start in range(0, len(flat), size))


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter, which keeps its `requires_grad`, or of a buffer."""
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
    return name == PATCH_EMBEDDING and square and [found[0], 3 * found[2] ** 2] == list(shape)


def _hint(missing: Sequence[str], extra: Sequence[str], found: Mapping[str, object]) -> str:
    """What to do about names that do not fit."""
    if any(".lora_A." in name or ".base_layer." in name for name in extra):
        return "these are a peft model's: call merge_and_unload() on it before its weights are saved"
    if list(missing) == [_HEAD]:
        return 'if its text head is the table of embeddings, llm_config.json must say "tie_word_embeddings": true'
    lacks_vision, surplus = (any(name.startswith(_VISION) for name in names) for names in (missing, extra))
    if lacks_vision and not any(name.startswith(_VISION) for name in found):
        return "these weights only generate; their configuration must have no vision encoder"
    if lacks_vision or (surplus and not any(name.startswith("vit_model.") for name in found)):
        return "the tensors of the vision encoder must be there all or not at all"
    if surplus:
        return "is vit_config.json missing beside the weights?"
    return "llm_config.json and vit_config.json must be those that came with the weights"


def counted(names: Sequence[str], kind: str, limit: int = 3) -> str:
    """How many names there are of a kind, and the first few."""
    count = f"{len(names):,} tensor{'s' if len(names) > 1 else ''}"
    return f"{count} {kind}: {', '.join(names[:limit])}{', ...' if len(names) > limit else ''}"
