"""Conditions of layout samples, computed from an image: canny edge maps and depth maps."""
