"""Reading and writing files: local paths, remote folders (fsspec), atomic writes."""
