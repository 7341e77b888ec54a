"""Make an image from two references: python examples/generate.py [FOLDER [MODEL]].

MODEL is a directory in the released layout, e.g. what `sigma export` or `make demo` wrote (demo/model), or a preset.
The default, `tiny-base`, composes drawn scenes; it has no vision encoder, so that its answer in words is noise.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from sigma_model import Guidance, SamplingSettings, load


def main(folder: Path, path: str) -> None:
    """Compose a red circle and a green wall, then ask a question."""
    folder.mkdir(parents=True, exist_ok=True)
    thing = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(thing).ellipse((16, 16, 48, 48), fill="red")
    place = Image.new("RGB", (64, 64), "darkgreen")

    model = load(path)
    image = model.generate(
        "Put <subject>the circle <image_1> in front of <background>the wall <image_2>",
        [thing, place],
        seed=7,
        settings=SamplingSettings(steps=8, guidance=Guidance(text=2.0, image=1.5)),
    )
    image.save(folder / "composed.png")
    print(f"{folder / 'composed.png'}: {image.width} x {image.height}")
    print(repr(model.answer("What color is the circle in <image_1>?", [thing], max_tokens=8)))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples-out"), sys.argv[2] if len(sys.argv) > 2 else "tiny-base")
