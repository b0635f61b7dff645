"""Sound in and out: decoding, encoding, resampling, and the one mel front-end."""
