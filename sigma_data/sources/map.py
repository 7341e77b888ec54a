"""`map:FILE.yaml?root=DIR`: a corpus by your own field map; `omniedit:DIR` and others by one that comes with sigma.

`sigma sources` lists the maps that come with sigma, docs/sources.md says how to write one.
"""

from sigma_data.sources.field_map.reader import MapReader

READER = MapReader
