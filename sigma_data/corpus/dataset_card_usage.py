"""The part of the data set card for people who read a corpus without `sigma`: code that runs, and pitfalls."""

from __future__ import annotations

from collections import Counter

from sigma_data.corpus.table_rows import TableRows, warnings_of
from sigma_data.images.image_warnings import IMAGE_WARNINGS
from sigma_data.images.reader_differences import CODES, LARGE

READ_IMAGE = """\
import io

import numpy as np
from PIL import Image, ImageOps


def read_image(data, value_range=None):
    \"\"\"The image as sigma shows it: upright, transparency on white, deep values scaled to 8 bits.

    `data` are its bytes; `value_range` is that of the image in the sample's JSON, if any.
    \"\"\"
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if value_range and (image.mode == "F" or image.mode.startswith("I")):
        values, low, high = np.asarray(image, np.float64), value_range["low"], value_range["high"]
        if value_range["rule"] == "full_16bit":
            scaled = values // 256
        else:
            scaled = np.rint((values - low) * (255 / (high - low)))
        image = Image.fromarray(np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")
"""
"""Reads the bytes of any image of a corpus as `sigma_data.images.decode.load` does."""

_DIFFERENT = """
## Images that other readers show differently

`sigma` shows an image upright, on white and with 8 bits a channel, and trains on that. Some images here are stored as
they came, and readers that only convert them to RGB show something else; the column `warnings` of `manifest.parquet`
has these codes:

| code | samples | |
|---|---:|---|
{rows}

This reads all of them as `sigma` does:

```python
{snippet}```

It takes the bytes, which `.decode()` without "pil" leaves alone in webdataset, and `Image(decode=False)` in `datasets`.
"""

_LARGE = """
## PNGs with large metadata

Samples with an image that has more text, or a larger colour profile, than Pillow opens by default: {count:,} (code
`{code}` in the column `warnings`). Pillow raises a ValueError for it, and so do `datasets`, webdataset and
`read_image`, unless its bounds are raised first, once in each process:

```python
from PIL import PngImagePlugin

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**30
```

Or build the corpus with `--store shown`, which stores such images without their metadata.
"""

_SHOWN = """
## Images stored as shown

These were not stored as they came, but as `sigma` shows them: upright RGB of 8 bits, which every reader shows alike.
The code is the image's `reencoded` in `manifest.parquet`; `value_range`, there and in the sample's JSON, gives the
values that became 0 and 255 for an image that had more than 8 bits.

| code | images |
|---|---:|
{rows}
"""

SURPRISES = """\
## With HF `datasets`

A `map` that so much as looks at an image encodes it anew, a JPEG at quality 75, and once more in every such `map`; one
that does not touch it, and `filter`, leave it alone. Switch decoding off first, and decode the bytes yourself:

```python
from datasets import Image

for name, feature in corpus.features.items():
    if isinstance(feature, Image):
        corpus = corpus.cast_column(name, Image(decode=False))  # from here on {{"bytes": ..., "path": ...}}, or None
```

A stream goes on where its state says, but what lies in the buffer of `shuffle` is lost then. With a buffer of 1 nothing
is, and the order of the shards is shuffled still (inside a shard the build has shuffled, unless told otherwise). The
state does not set the epoch: without `set_epoch` the stream goes on in the order of another epoch and repeats samples.

```python
stream = load_dataset("PATH/TO/THIS/FOLDER", split="{first_split}", streaming=True).shuffle(seed=0, buffer_size=1)
stream.set_epoch(1)
first = next(iter(stream))
state = stream.state_dict()  # plain JSON: keep it with your checkpoint, and the epoch with it

again = load_dataset("PATH/TO/THIS/FOLDER", split="{first_split}", streaming=True).shuffle(seed=0, buffer_size=1)
again.set_epoch(1)
again.load_state_dict(state)
```
"""


def different_images(manifest: TableRows) -> str:
    """The sections on images that others show differently, or that are stored as shown; empty if there are none."""
    warned = warnings_of(manifest)
    stored = Counter(dict(manifest.counts("images.reencoded").iter_rows()))
    text = ""
    if different := [code for code in CODES if code in warned and code != LARGE]:
        rows = "\n".join(f"| `{code}` | {warned[code]:,} | {IMAGE_WARNINGS[code]} |" for code in different)
        text += _DIFFERENT.format(rows=rows, snippet=READ_IMAGE)
    if LARGE in warned:
        text += _LARGE.format(count=warned[LARGE], code=LARGE)
    if shown := [code for code in CODES if stored[code]]:
        text += _SHOWN.format(rows="\n".join(f"| `{code}` | {stored[code]:,} |" for code in shown))
    return text
