"""Training OmniGen2: samples in its layout, losses behind `pipelines.train.backbone`, weights."""
