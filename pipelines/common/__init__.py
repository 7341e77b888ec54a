"""What several pipelines share: settings, process pool, folder lock, progress, model loading."""
