"""The fixed codes for images without a row: what each means, and which failures may not happen again."""

from __future__ import annotations

from collections.abc import Mapping

from layertap.errors import ImageError
from layertap.images.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS

REASONS: Mapping[str, str] = {
    # read
    "not_found": "no such file, or a link that leads nowhere",
    "not_regular": "a folder, pipe, socket or device, not a regular file",
    "permission": "the file may not be read",
    "path_too_long": "the path is longer than the system allows; of a folder, nothing in it can be reached",
    "windows_path": "no file has this name, and it looks like a path of Windows: write `/` between its parts, and "
    "where the images are now, as in `root`",
    "io_error": "the system could not read the file",
    "file_too_large": f"the file is larger than {MAX_IMAGE_BYTES // 2**20} MiB",
    "empty": "there are 0 bytes, or 0 pixels",
    "vanished": "the source gave it when the run was planned, and not any more when its turn came",
    "changed": "its file is not the one that the run was planned with: another size, modification time or ETag",
    "network": "its server could not be reached, broke off or answered with an error, each time it was asked",
    "unsafe_member": "a member of an archive that is not a plain file inside it, is there twice, needs a password, "
    "or unpacks to more than 100 times its size",
    "outside_root": "a link that leads out of the source's folder; `links: follow` reads it all the same",
    # decode
    "lfs_pointer": "a Git LFS pointer instead of the image; run `git lfs pull`",
    "format_not_allowed": "a format that is not opened: TIFF, JPEG2000 and AVIF are where `formats` names them, "
    "as in `formats: [TIFF]`; convert any other",
    "codec_missing": "HEIC, AVIF or JPEG XL, for which there is no decoder here",
    "not_image": "no image at all",
    "truncated": "the data ends before the image does",
    "corrupt": "the data is damaged",
    "unsupported_mode": "a variant of its format that is not read, such as a 12-bit JPEG or a floating-point TIFF",
    "too_large": f"more pixels than `max_pixels`, by default {MAX_IMAGE_PIXELS:,}",
    "memory": "decoding and preparing it would take more than `image_memory`, by default 512 MiB",
    "metadata_too_large": "text or a colour profile that unpacks to more than Pillow allows",
    # prepare
    "shape": "prepared to another shape or dtype than the other images",
    "aspect": "too long and thin to resize",
    "too_small": "smaller than the model can take",
    "greyscale": "stored as greyscale, which the preprocessor refuses with `grey: fail`",
    # any stage
    "timeout": "it took longer than `image_timeout` seconds, or its server let it wait longer than the source's "
    "`timeout`",
    "decoder_crash": "the process that decoded it died (with `isolation: process`)",
    "out_of_memory": "not enough memory for this image",
    "error": "the source or the preprocessor raised",
}

# These depend on the moment, or on a limit that may be higher by now, and not on the image alone: `--retry-failed`
# tries them again, and any code of a source's own.
_PASSING = frozenset(
    {"not_found", "vanished", "changed", "permission", "io_error", "network", "out_of_memory", "timeout", "memory"}
    | {"too_large"}
)
_LASTING_READS = frozenset(
    {"not_regular", "windows_path", "path_too_long", "file_too_large", "empty", "unsafe_member", "outside_root"}
)


def may_pass(stage: str, reason: str) -> bool:
    """Whether an image that failed at `stage` for `reason` may succeed the next time, although it is unchanged."""
    return reason in _PASSING or (stage == "read" and reason not in _LASTING_READS)


def refusal(reason: str) -> ImageError:
    """The error for a code of `REASONS`, with its meaning."""
    return ImageError(reason, f"{reason}: {REASONS[reason]}")
