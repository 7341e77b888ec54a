"""Pixel by pixel and by perceptual distance against the reference answer: PSNR, SSIM, LPIPS, DreamSim.

The arithmetic is torchmetrics' and dreamsim's; here stand only sizes, scales and where weights lie. For all but
DreamSim, which brings both to its own size, an output of another size than the answer is resampled to it.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.metrics.base import Metric, answer_of, chunks, image_of, pixel_pair
from pipelines.evaluate.metrics.weights import EXTRA, directory, loading, package
from sigma_data.errors import ConfigError
from sigma_data.images.decode import ImageFault, load

if TYPE_CHECKING:
    from torch import Tensor

_RESIZED = "output and reference answer as RGB, the output resampled (bicubic, antialiased) to the answer's size"
_SSIM_WINDOW = 11
_LPIPS_NETS = ("alex", "vgg", "squeeze")
_MOST = 100.0


class _AgainstAnswer(Metric):
    """A number for a pair of images of one size."""

    def __init__(self, device: str) -> None:
        self._device = device

    def applies(self, item: Item) -> bool:
        return item.answer is not None

    def score(self, results: Sequence[Result]) -> list[float]:
        # A pair at a time: answers come in many sizes.
        return [self.pair(*self._unit_pair(result)) for result in results]

    @abstractmethod
    def pair(self, output: Tensor, answer: Tensor) -> float:
        """The number for two images [1, 3, h, w] of float64 in 0..1."""

    def _unit_pair(self, result: Result) -> tuple[Tensor, Tensor]:
        import torch

        output, answer = (
            (torch.tensor(pixels, device=self._device).permute(2, 0, 1)[None].double() / 255)
            for pixels in pixel_pair(result)
        )
        return output, answer


class Psnr(_AgainstAnswer):
    """PSNR. Raises Unavailable without torchmetrics."""

    name = "PSNR"
    better = "up"
    scale = "dB, 100 at most"
    definition = f"10 log10(1 / mean squared error) over all pixels and channels in 0..1, 100 dB at most; {_RESIZED}."

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._functional = package("torchmetrics.functional.image", EXTRA)

    def pair(self, output: Tensor, answer: Tensor) -> float:
        # Equal images give infinity, which no mean survives.
        return min(float(self._functional.peak_signal_noise_ratio(output, answer, data_range=1.0)), _MOST)


class Ssim(_AgainstAnswer):
    """SSIM. Raises Unavailable without torchmetrics."""

    name = "SSIM"
    better = "up"
    scale = "-1 to 1"
    definition = (
        "Structural similarity (Gaussian window of 11 pixels, sigma 1.5, K1 0.01, K2 0.03), mean over all places, "
        f"mirrored at the borders, and over RGB; {_RESIZED}."
    )

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._functional = package("torchmetrics.functional.image", EXTRA)

    def pair(self, output: Tensor, answer: Tensor) -> float:
        if min(answer.shape[2:]) < _SSIM_WINDOW:
            raise ImageFault("too_small", f"SSIM needs images of {_SSIM_WINDOW} x {_SSIM_WINDOW} pixels or more")
        return float(self._functional.structural_similarity_index_measure(output, answer, data_range=1.0))


class Lpips(_AgainstAnswer):
    """LPIPS by torchmetrics, which takes its trunk from torchvision.

    `value` is the trunk (alex, vgg, squeeze), or a directory in torch.hub's layout that holds AlexNet's weights
    (`checkpoints/alexnet-owt-7be5be79.pth`). Raises ConfigError for other values, Unavailable without the packages
    or the weights.
    """

    name = "LPIPS"
    better = "down"
    scale = "0 and up"

    def __init__(self, value: str, device: str) -> None:
        super().__init__(device)
        place = directory("lpips", value)
        net = value if place is None else "alex"
        if net not in _LPIPS_NETS:
            raise ConfigError(f"{value}: LPIPS takes {', '.join(_LPIPS_NETS)}, or a directory with AlexNet's weights")
        image = package("torchmetrics.image.lpip", f"{EXTRA} torchvision")
        with loading("lpips", value), _hub_in(place):
            self._distance: Any = image.LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=True)
        self._distance.to(device)
        self.definition = f"Learned perceptual distance, trunk {value}, pictures in full; {_RESIZED}."

    def pair(self, output: Tensor, answer: Tensor) -> float:
        import torch

        with torch.inference_mode():
            value = float(self._distance(output.float(), answer.float()))
        self._distance.reset()
        return value


class DreamSim(Metric):
    """DreamSim by the package of that name, which fetches weights and, through torch.hub, code of DINO.

    `value` is the package's model type (ensemble, dino_vitb16, ...), or a directory where its files lie, the
    ensemble's. Raises ConfigError for a wrong directory, Unavailable without the package or the weights.
    """

    name = "DreamSim"
    better = "up"
    scale = "-100 to 100"

    def __init__(self, value: str, device: str, batch: int) -> None:
        place = directory("dreamsim", value)
        kind = value if place is None else "ensemble"
        entry = package("dreamsim", "dreamsim")
        with loading("dreamsim", value), redirect_stdout(sys.stderr):  # it prints, and stdout is for results
            folder = place or _cache()
            self._model, self._prepare = entry.dreamsim(
                pretrained=True, device=device, cache_dir=str(folder), dreamsim_type=kind
            )
        self._device = device
        self._batch = batch
        self.definition = (
            f"100 (1 - DreamSim distance of output and reference answer), model {value}, both at 224 x 224 pixels."
        )

    def applies(self, item: Item) -> bool:
        return item.answer is not None

    def score(self, results: Sequence[Result]) -> list[float]:
        import torch

        found: list[float] = []
        for some in chunks(results, self._batch):
            outputs, answers = (
                torch.cat([self._prepare(load(image)) for image in images]).to(self._device)
                for images in (map(image_of, some), map(answer_of, some))
            )
            with torch.inference_mode():
                distances = self._model(outputs, answers).double().reshape(-1)
            found += [float(value) for value in 100 * (1 - distances)]
        return found


@contextmanager
def _hub_in(place: Path | None) -> Iterator[None]:
    """torch.hub's directory for a while, where one is given."""
    from torch import hub

    if place is None:
        yield
        return
    before = hub.get_dir()
    hub.set_dir(place)
    try:
        yield
    finally:
        hub.set_dir(before)


def _cache() -> Path:
    """Where dreamsim keeps its files: beside torch.hub's, not in the working directory as by default."""
    from torch import hub

    folder = Path(hub.get_dir()) / "dreamsim"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
