"""How large an image may be, before anything is read or allocated for it."""

from __future__ import annotations

# The decoders need a file in one piece, so it costs its size on every worker at once. The largest image under the pixel
# cap is 341 MiB without any compression (a 32-bit BMP), which leaves room for metadata.
MAX_IMAGE_BYTES = 512 * 2**20

# Where Pillow starts to warn of a decompression bomb: 256 MiB as RGB.
MAX_IMAGE_PIXELS = 89_478_485
