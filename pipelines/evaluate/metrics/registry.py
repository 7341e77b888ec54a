"""All metrics of images by name, and which of them can run here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipelines.evaluate.metrics.base import Metric, SetMetric, Unavailable
from pipelines.evaluate.metrics.control import DepthRmse, EdgeF1
from pipelines.evaluate.metrics.embeddings import Clip, Dino
from pipelines.evaluate.metrics.fid import load_fid
from pipelines.evaluate.metrics.fidelity import DreamSim, Lpips, Psnr, Ssim
from pipelines.evaluate.metrics.gram import GramDistance
from pipelines.evaluate.metrics.likeness import Aesthetic, AnswerLikeness, Exclusivity, StyleLikeness, TextLikeness
from pipelines.evaluate.metrics.weights import DEFAULTS
from sigma_data.errors import ConfigError


class _Setting:
    """Where models come from and run; a backbone is loaded once, and tried once where it is unavailable."""

    def __init__(self, models: Mapping[str, str], device: str, batch: int) -> None:
        self.models = {**DEFAULTS, **models}
        self.device = device
        self.batch = batch
        self._clip: Clip | Unavailable | None = None

    def clip(self) -> Clip:
        """The CLIP model that five metrics share. Raises as `Clip` does."""
        if self._clip is None:
            try:
                self._clip = Clip(self.models["clip"], self.device, self.batch)
            except Unavailable as error:
                self._clip = error
        if isinstance(self._clip, Unavailable):
            raise self._clip
        return self._clip


_MAKERS: dict[str, Callable[[_Setting], Metric | SetMetric]] = {
    "CLIP": lambda use: TextLikeness(use.clip()),
    "CLIP-I": lambda use: AnswerLikeness(use.clip()),
    "DINO": lambda use: AnswerLikeness(Dino(use.models["dino"], use.device, use.batch)),
    "DreamSim": lambda use: DreamSim(use.models["dreamsim"], use.device, use.batch),
    "CLIP-ES": lambda use: Exclusivity(use.clip()),
    "AES": lambda use: Aesthetic(use.clip(), use.models["aesthetic"]),
    "F1": lambda use: EdgeF1(),
    "depth RMSE": lambda use: DepthRmse(use.models["depth"], use.device, use.batch),
    "style CLIP-I": lambda use: StyleLikeness(use.clip()),
    "style Gram": lambda use: GramDistance(use.models["gram"], use.device, use.batch),
    "PSNR": lambda use: Psnr(use.device),
    "SSIM": lambda use: Ssim(use.device),
    "LPIPS": lambda use: Lpips(use.models["lpips"], use.device),
    "FID": lambda use: load_fid(use.models["inception"], use.device, use.batch),
}

NAMES = tuple(_MAKERS)
"""The metrics of this package, in the order of tables."""


def register(metric: type[Metric] | type[SetMetric]) -> None:
    """Make a metric known that lies outside this package; its class is called without arguments when it is wanted.

    Raises ConfigError for the name of a metric of this package.
    """
    if metric.name in NAMES:
        raise ConfigError(f"{metric.name}: there is a metric of that name")
    _MAKERS[metric.name] = lambda _use: metric()


def names() -> tuple[str, ...]:
    """Every metric, the registered ones last."""
    return tuple(_MAKERS)


_BACKBONES: Mapping[str, tuple[str, ...]] = {
    "CLIP": ("clip",),
    "CLIP-I": ("clip",),
    "DINO": ("dino",),
    "DreamSim": ("dreamsim",),
    "CLIP-ES": ("clip",),
    "AES": ("clip", "aesthetic"),
    "depth RMSE": ("depth",),
    "style CLIP-I": ("clip",),
    "style Gram": ("gram",),
    "LPIPS": ("lpips",),
    "FID": ("inception",),
}
"""What a metric is computed with; its definition names all of it."""


def make_metrics(
    wanted: Sequence[str] | None, models: Mapping[str, str], device: str, batch: int
) -> tuple[list[Metric | SetMetric], dict[str, str]]:
    """The metrics, and by name the reason for each that cannot run here.

    `wanted` are names of metrics, None for all. `models` gives backbones (the keys of `weights.DEFAULTS`) a hub
    name or a directory of their own. `device` is torch's name for it; `batch` images go through a model at once.

    Raises:
        ConfigError: a metric or a backbone that does not exist, a directory that is not there or does not hold
            what it should.
    """
    _known("metric", wanted or (), names())
    _known("model of the metrics", models, tuple(DEFAULTS))
    use = _Setting(models, device, batch)
    made: list[Metric | SetMetric] = []
    skipped: dict[str, str] = {}
    for name in names() if wanted is None else dict.fromkeys(wanted):
        try:
            made.append(_MAKERS[name](use))
        except Unavailable as error:
            skipped[name] = error.reason
    return made, skipped


def backbones(name: str, models: Mapping[str, str]) -> list[str]:
    """What the metric is computed with, as its definition names it; `models` as `make_metrics` takes them."""
    return [{**DEFAULTS, **models}[key] for key in _BACKBONES.get(name, ())]


def _known(what: str, given: Sequence[str] | Mapping[str, str], known: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such {what}; there are {', '.join(known)}")
