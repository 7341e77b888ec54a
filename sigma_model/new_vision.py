"""A model that only generates, with a vision encoder that nothing has trained yet: so that it can learn to look.

SIGMA's own weights lack one; BAGEL's is then the better start. Where there is none to take, this draws one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from sigma_data.errors import ConfigError
from sigma_data.sequence.tokenizer_reader import TOKENIZER_FILES
from sigma_model.checkpoint_io import assign, export_model, load_model
from sigma_model.config import WEIGHT_FILES
from sigma_model.initialization import fresh_tensor
from sigma_model.loading import describe_model
from sigma_model.model import SigmaModel
from sigma_model.model_files import VAE_FILE, find_file


def add_vision(where: str, like: str, out: Path, *, seed: int = 0) -> None:
    """Write the model `where` to `out`, in the released layout, with a vision encoder of the sizes of that of `like`.

    All else stays as it is, to the bit; the encoder and its connector are drawn from `seed`. The weights appear last.
    Raises ConfigError where `where` has a vision encoder already, `like` has none, or `out` cannot be written.
    """
    model, other = describe_model(where), describe_model(like)
    if model.config.vision is not None:
        raise ConfigError(f"{where}: has a vision encoder already")
    if other.config.vision is None:
        raise ConfigError(f"{like}: has no vision encoder whose sizes could be taken")
    trained = load_model(model.directory, dtype=torch.float32, config=model.config).state_dict()
    config = model.config.model_copy(update={"vision": other.config.vision})
    with torch.device("meta"):
        made = SigmaModel(config)
    for name, tensor in made.state_dict().items():
        known = trained.get(name)
        assign(made, name, known if known is not None else fresh_tensor(config, name, tensor.shape, seed=seed))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (VAE_FILE, *TOKENIZER_FILES):
            found = find_file(name, *model.places)
            if found.exists():
                shutil.copyfile(found, out / name)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}): choose another place") from None
    export_model(made, out, name=WEIGHT_FILES[0])
