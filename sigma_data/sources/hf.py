"""`hf:OWNER/NAME`: a data set of the hub, streamed, by the field map that has this hub id or that `?map=` names."""

from sigma_data.sources.field_map.hub import HubReader

READER = HubReader
