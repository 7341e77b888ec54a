#!/usr/bin/env bash
# simplejpeg 1.9.0: a JPEG whose chroma is sampled 4:4:1 raises KeyError, although its own libjpeg-turbo decodes it.
#
# Guess before the first run: the header says "441" and the pixels are those of Pillow, for both bind libjpeg-turbo 3.1,
# which knows 4:4:1; or, as for every file that it does not take, the ValueError of its documentation.
# Seen: decode_jpeg_header and decode_jpeg end with KeyError: 6, libjpeg-turbo's number of 4:4:1, for which a table of
# names has no entry. Pillow reads the file. 4:1:1, the same turned by 90 degrees, is read by both.
# Why it matters: photographs of 4:1:1 that were rotated without loss have 4:4:1. A loader that falls back to another
# reader on ValueError loses them, or ends.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check simplejpeg==1.9.0 pillow==12.3.0 numpy==2.4.6

cat > "$work/check.py" <<'PYTHON'
import io

import numpy as np
import simplejpeg
from PIL import Image

slope = np.linspace(0, 255, 32)[:, None, None] * [1, 0.5, 0.2] + np.zeros((32, 32, 3))
wide = simplejpeg.encode_jpeg(np.ascontiguousarray(slope, np.uint8), quality=90, colorsubsampling="411")
# The luma's factors are 4 x 1; as 1 x 4 a square picture has as many units of as many blocks, and is valid as well.
frame = wide.index(b"\xff\xc0")
tall = bytearray(wide)
assert tall[frame + 11] == 0x41
tall[frame + 11] = 0x14
tall = bytes(tall)

for name, data in (("4:1:1", wide), ("4:4:1", tall)):
    pixels = np.array(Image.open(io.BytesIO(data)))
    try:
        found = f"reads {simplejpeg.decode_jpeg_header(data)}"
        assert np.array_equal(simplejpeg.decode_jpeg(data, "RGB"), pixels)
    except Exception as error:
        found = f"raises {error!r}"
    print(f"{name}: Pillow reads {pixels.shape}, simplejpeg {found}")
    assert found.startswith("reads" if name == "4:1:1" else "raises KeyError"), "the behaviour has changed"
PYTHON
"$work/venv/bin/python" "$work/check.py"
