"""A model's directory in an object store, as a folder of this machine: weights are mapped from files, not fetched."""

from __future__ import annotations

import json
from pathlib import Path

from sigma_data.corpus.places import copy_folder, fetch
from sigma_data.errors import SourceError
from sigma_data.storage.data_folder import RemoteFolder
from sigma_data.storage.files import disk_error, dump_json, write_atomic
from sigma_data.storage.paths import is_uri

_STAMPS = ".stamps.json"


def local_model(place: str) -> str:
    """A preset or path as it is; of a URI the folder of the cache with copies of its files, those that changed anew.

    Files that are no longer there are removed from the copy. Raises SourceError where the store does not give them,
    BuildError where the cache cannot be written.
    """
    if not is_uri(place):
        return place
    remote = RemoteFolder(place)
    # The last folder has the model's name, which reports show.
    copy = copy_folder(place).parents[1] / "models" / copy_folder(place).name / place.rstrip("/").rpartition("/")[2]
    files = dict(remote.files(""))
    if not any(name.endswith(".json") for name in files):
        raise SourceError(f"{place}: has no model (no config.json): name the folder that sigma export has written")
    try:
        copy.mkdir(parents=True, exist_ok=True)
        before = _stamps(copy)
        for name in set(before) - set(files):
            (copy / name).unlink(missing_ok=True)
        kept = {name: stamp for name, stamp in files.items() if before.get(name) == stamp and (copy / name).is_file()}
        for name, stamp in files.items():
            if name not in kept:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                fetch(remote, name, copy)
                kept[name] = stamp
                write_atomic(copy / _STAMPS, dump_json(kept))  # a copy that is interrupted goes on with the next file
        write_atomic(copy / _STAMPS, dump_json(kept))
    except OSError as error:
        raise disk_error(error, copy, option="SIGMA_CACHE") from None
    return str(copy)


def _stamps(copy: Path) -> dict[str, str]:
    try:
        found = json.loads((copy / _STAMPS).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(stamp) for name, stamp in found.items()} if isinstance(found, dict) else {}
