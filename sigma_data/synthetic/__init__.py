"""Samples of six image families, of segmentation and of understanding, drawn from a seed (the source `world:`).

Their ground truth is exact.
`draw_sample` is a pure function of (seed, size, format, family, index); the scene does not depend on
size or format, so the same sample at another size shows the same scene.

The truth of a sample is JSON text:

- `kind`: which variant of the family's recipe; `change`: the edit or selection, null where none.
- `scene`: the target. `background` (kind, colours, horizon, `perspective`: a room's vanishing point),
  `lighting` (kind, tint), `environment`, `style` (kind, inks, pitch), `frame`, and `objects`, each
  with shape, name, colour and accent (name, rgb), texture, exact `box` [x0, y0, x1, y1] and `centre`
  in 0..1, size, rotation in degrees clockwise, mirror, and where it has them character (species,
  eyes, marks, emotion, pose), wear, icon, text. `anchor` is a point of its body that nothing of it
  covers, and `seen` its colour there under the scene's light, before weather, style and frame.
- `references`: for each reference its image number, role, `map` (outline, depth or null) and scene;
  what stands in one of these and not in `scene` must not leak into the target.
- `sources`: attribute -> number of the image that it comes from.
- `instances` (segmentation): the colour [r, g, b] of every object of `scene` in the colour map.
- `questions` (understanding): kind and answer of every question; `scene` is null where there is no image.
"""

from sigma_data.synthetic.sampling import FORMATS, Drawn, draw_sample

__all__ = ["FORMATS", "Drawn", "draw_sample"]
