"""One image: decoding, resampling, what it is and how it differs from others."""
