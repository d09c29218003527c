"""How large an image may be, before anything is read or allocated for it."""

from __future__ import annotations

# Decoders need the whole file in memory, on every worker at once. The largest image below the pixel limit takes 341 MiB
# without compression (a 32-bit BMP), which leaves space for metadata.
MAX_IMAGE_BYTES = 512 * 2**20

# Pillow warns of a decompression bomb from here: 256 MiB as RGB.
MAX_IMAGE_PIXELS = 89_478_485
