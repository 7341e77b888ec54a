"""How the shipped presets were made; not installed."""
