"""The files in a model's directory: where they lie, and what their headers say before any data is read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigma_data.errors import ConfigError, reason_of
from sigma_model.state_dict_adapter import unwrapped, wrappers_in

LLM_FILE, VIT_FILE, SIGMA_FILE = "llm_config.json", "vit_config.json", "sigma.json"
VAE_FILE = "ae.safetensors"
WEIGHT_FILES = ("ema.safetensors", "model.safetensors")
"""Where the weights may lie; the averaged ones (EMA) come first, as the release means them to be used."""
DOWNLOADS = {"BAGEL-7B-MoT": "bagel", "OmniGen2": "omnigen2", "SGT-BAGEL": "sgt-bagel", "SGT-Gen2": "sgt-gen2"}
"""Released models: the folder that `sigma download NAME` puts each into, below models/, and that name."""


def find_file(name: str, *places: Path) -> Path:
    """A file in the first of several directories that has it; where none has, its place in the last."""
    return next((place / name for place in places if (place / name).exists()), places[-1] / name)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: where its bytes are (`start` to `end`, from the file's beginning) and what they hold."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def stored_tensors(path: Path, *, complete: bool = False) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, from its header alone.

    Raises ConfigError for a damaged header, and with `complete` for a file shorter than its header says.
    """
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
                tensors[name] = StoredTensor(path, str(entry["dtype"]), shape, start, end)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path}: not a safetensors file ({reason_of(error)}): download it again") from None
    promised = max((stored.end for stored in tensors.values()), default=0)
    if complete and promised > total:
        raise ConfigError(f"{path}: is cut short: {total:,} bytes of {promised:,}: download it again")
    return tensors


def header_shapes(path: Path) -> dict[str, list[int]]:
    """Names and shapes in a safetensors file. Raises ConfigError for a damaged header."""
    return {name: list(stored.shape) for name, stored in stored_tensors(path).items()}


def weight_files(directory: Path) -> list[Path]:
    """The files of the weights to use: one file, or the shards that an index names. Empty: none there.

    An index may name the autoencoder's tensors as well, as vLLM-Omni needs it; its file is no shard of the weights.
    Raises ConfigError where an index names shards that are not there, or shards lie there without an index.
    """
    for name in WEIGHT_FILES:
        if (directory / name).exists():
            return [directory / name]
        if (directory / f"{name}.index.json").exists():
            named = _weight_map(directory / f"{name}.index.json")
            return [directory / shard for shard in sorted(set(named.values()) - {VAE_FILE})]
    for name in WEIGHT_FILES:
        if shards := sorted(directory.glob(f"{Path(name).stem}-*-of-*.safetensors")):
            raise ConfigError(f"{directory}: holds {shards[0].name} and no {name}.index.json: download the index, too")
    return []


def weight_tensors(directory: Path, *, complete: bool = False) -> dict[str, StoredTensor]:
    """The tensors of the weights to use by the names in their files, from the headers alone; empty: none there.

    Raises ConfigError as `weight_files` and `stored_tensors`, where two shards hold one name, and where an index names
    a tensor that its shard does not hold.
    """
    found: dict[str, StoredTensor] = {}
    files = weight_files(directory)
    for path in files:
        for name, stored in stored_tensors(path, complete=complete).items():
            if name in found:
                raise ConfigError(f"{path}: holds {name}, which {found[name].path.name} holds as well")
            found[name] = stored
    index = next((path for name in WEIGHT_FILES if (path := directory / f"{name}.index.json").exists()), None)
    if index is not None and files and files[0].name not in WEIGHT_FILES:
        for name, shard in _weight_map(index).items():
            if shard != VAE_FILE and (name not in found or found[name].path.name != shard):
                raise ConfigError(f"{index}: places {name} in {shard}, which does not hold it: download both again")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """Tensors and their files as an index has them. Raises ConfigError where it names a file that is not there."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(shard, str) for shard in named.values()):
        raise ConfigError(f"{index}: has no weight_map from tensors to files")
    for shard in sorted(set(named.values())):
        if Path(shard).name != shard or not (index.parent / shard).is_file():
            raise ConfigError(f"{index}: names {shard!r}, which is not there: download it")
    return named


def refuse_shadow(directory: Path, name: str) -> None:
    """Raise ConfigError where weights written as `name` would not be the ones that are read."""
    before = WEIGHT_FILES[: WEIGHT_FILES.index(name)] if name in WEIGHT_FILES else WEIGHT_FILES
    there = weight_files(directory)
    if there and any(there[0].name == other or (directory / f"{other}.index.json").exists() for other in before):
        raise ConfigError(
            f"{directory}: holds {there[0].name}, which would be read instead of {name}: choose another folder"
        )


def how_to_fetch(directory: Path) -> str:
    """What brings the files of a model that are not there: a `sigma download`, if its directory or name is released."""
    name = DOWNLOADS.get(directory.name)
    if name is not None:
        out = "" if directory == Path("models", directory.name) else f" --out {shlex.quote(str(directory))}"
        return f"`sigma download {name}{out}` fetches it"
    for folder, name in DOWNLOADS.items():
        if name == str(directory):
            return f"`sigma download {name}` fetches it to models/{folder}, which is then its path"
    return "check the path, or fetch a model: `sigma download` lists them"


def no_weights(directory: Path) -> str:
    """What to say of a model's directory in which there are none."""
    return f"{directory}: has no weights: {' or '.join(WEIGHT_FILES)} must lie there: {how_to_fetch(directory)}"


def released_shapes(directory: Path, *, strip: Sequence[str] = ()) -> dict[str, list[int]]:
    """Names without the prefixes to `strip`, and shapes, of the weights to use; empty where there are none.

    Raises ConfigError as `weight_tensors`, and where the names bear other prefixes.
    """
    found = {unwrapped(name, strip): list(stored.shape) for name, stored in weight_tensors(directory).items()}
    refuse_wrapped(found, directory)
    return found


def refuse_wrapped(names: Collection[str], directory: Path) -> None:
    """Raise ConfigError where names would be released ones without what a wrapper put into them."""
    if wrappers := wrappers_in(names):
        listed = ", ".join(json.dumps(one) for one in wrappers)
        raise ConfigError(
            f"{directory}: the names of its weights hold {listed}, which a wrapper (DistributedDataParallel, FSDP, "
            f'torch.compile, an average) left there: to read them without, write "strip_prefix": [{listed}] into '
            f"{directory / SIGMA_FILE}"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a model's directory. Raises ConfigError."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        if not any(path.parent.glob("*.safetensors")):
            raise ConfigError(
                f"{path.parent}: has no {path.name}, nor weights: "
                "name the directory of a model, or a preset such as tiny-base"
            ) from None
        raise ConfigError(
            f"{path.parent}: has no {path.name}; where weights lie alone, as in SIGMA's release, "
            "name the model they were trained from as their base"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({reason_of(error)})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold a JSON object")
    return value
