"""The split preprocessing is bit for bit torchvision's preset, and refuses images that it cannot handle."""

from __future__ import annotations

import io

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.Image import Transpose
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from layertap import ImageError
from layertap.images.decoding.decode import decode
from layertap.records import PROFILES
from layertap_plugins.preprocessors.imagenet import ImageNet

MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "I;16"]
FILTERS = ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


def picture(width, height, mode="RGB", seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    image = Image.fromarray(noise, "RGBA") if mode in ("RGBA", "LA", "PA") else Image.fromarray(noise[..., :3].copy())
    return image.convert("LA").convert(mode) if mode == "PA" else image.convert(mode)


def as_torchvision_does(images, **numbers):
    preset = ImageClassification(**numbers)
    return torch.stack([preset(image.convert("RGB")) for image in images])


def as_we_do(images, **params):
    preprocessor = ImageNet.of(**params)
    return preprocessor.finish(torch.stack([preprocessor.prepare(image) for image in images]))


def differ(ours, theirs):
    return (ours - theirs).abs().max().item()


@pytest.mark.parametrize("mode", MODES)
def test_the_defaults_are_those_of_alexnet_in_every_mode(mode):
    images = [picture(width, height, mode) for width, height in [(301, 233), (97, 401), (256, 256), (31, 40)]]
    assert differ(as_we_do(images), as_torchvision_does(images, crop_size=224)) == 0


side = st.integers(1, 160)


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.tuples(side, side), min_size=1, max_size=3),
    mode=st.sampled_from(MODES),
    resize=st.integers(1, 64),
    crop=st.integers(1, 96),
    interpolation=st.sampled_from(FILTERS),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(1e-6, 1)] * 3),
    seed=st.integers(0, 9),
)
@example(sizes=[(1, 160)], mode="P", resize=64, crop=96, interpolation="bilinear", mean=(0,) * 3, std=(1,) * 3, seed=0)
def test_any_image_and_any_numbers_give_the_bits_of_the_preset(
    sizes, mode, resize, crop, interpolation, mean, std, seed
):
    images = [picture(width, height, mode, seed) for width, height in sizes]
    theirs = as_torchvision_does(
        images,
        crop_size=crop,
        resize_size=resize,
        mean=mean,
        std=std,
        interpolation=InterpolationMode(interpolation),
    )
    ours = as_we_do(images, resize=resize, crop=crop, mean=mean, std=std, interpolation=interpolation)
    assert differ(ours, theirs) == 0


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (500, 333), (257, 255), (48, 32)])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (256, 257)])
def test_images_of_usual_sizes_give_the_bits_of_the_preset(size, resize, crop):
    images = [picture(*size)]
    theirs = as_torchvision_does(images, resize_size=resize, crop_size=crop)
    assert differ(as_we_do(images, resize=resize, crop=crop), theirs) == 0


# The fast profile


def fast(**params):
    preprocessor = ImageNet.of(**params)
    preprocessor.profile = PROFILES["fast"]
    return preprocessor


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (40, 30), (2500, 1700)])
def test_the_fast_profile_is_off_by_a_level_at_times(photographs, size, interpolation):
    for image in photographs[:2]:
        image = image.resize(size)
        exact = ImageNet.of(interpolation=interpolation).prepare(image)
        quick = fast(interpolation=interpolation).prepare(image)
        assert (quick.shape, quick.dtype) == (exact.shape, exact.dtype)
        off = (quick.int() - exact.int()).abs()
        assert off.max() <= (2 if interpolation in ("bilinear", "bicubic") else 0)
        assert (off > 0).double().mean() < 0.02
        assert torch.equal(quick, fast(interpolation=interpolation).prepare(image))


def test_the_fast_profile_makes_no_difference_where_there_is_nothing_to_save():
    image = picture(60, 40)
    for params in ({"resize": 16, "crop": 24}, {"interpolation": "nearest"}):
        assert torch.equal(fast(**params).prepare(image), ImageNet.of(**params).prepare(image))


def test_enough_is_what_is_only_made_smaller():
    assert ImageNet().enough((4000, 3000)) == (256, 256)
    assert ImageNet.of(resize=32).enough((10, 10)) == (32, 32)
    assert ImageNet.of(interpolation="nearest").enough((4000, 3000)) is None


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_a_scaled_photograph_gives_much_the_same(photographs, exif):
    block = Image.Exif()
    block[0x0112] = 6
    file = io.BytesIO()
    photographs[0].resize((2000, 1500)).save(file, "JPEG", quality=95, exif=block)
    preprocessor = fast(exif=exif)
    image = decode(file.getvalue(), enough=preprocessor.enough)
    assert image.size == (500, 375)
    whole = ImageNet.of(exif=exif).prepare(decode(file.getvalue())).double()
    assert (preprocessor.prepare(image).double() - whole).abs().mean() < 3


# The stored form of each of the eight orientations, which becomes the upright image when rotated accordingly.
STORED = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def stored(image, orientation):
    """A PNG with this orientation in its EXIF block, as read back."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    method = STORED.get(orientation)
    file = io.BytesIO()
    (image if method is None else image.transpose(method)).save(file, "PNG", exif=exif)
    return decode(file.getvalue())


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16"])
def test_orientations_are_applied_where_asked_for(orientation, mode):
    upright, sides = picture(61, 43, mode), {"resize": 24, "crop": 16}
    image = stored(upright, orientation)
    assert differ(as_we_do([image], **sides, exif="apply"), as_we_do([upright], **sides)) == 0
    assert differ(as_we_do([image], **sides, exif="apply"), as_we_do([ImageOps.exif_transpose(image)], **sides)) == 0
    assert differ(as_we_do([image], **sides), as_torchvision_does([image], resize_size=24, crop_size=16)) == 0


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(40),
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01\0\x06\0\0\0\0\0\x08",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x08\0\0\0\x08",
        "a text",
    ],
    ids=["empty", "leads nowhere", "too short", "another type", "leads to itself", "text"],
)
def test_broken_exif_is_ignored(exif):
    image = picture(301, 233)
    image.info["exif"] = exif
    assert differ(as_we_do([image], exif="apply"), as_we_do([picture(301, 233)])) == 0


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bit_greyscale_is_clipped_or_rescaled(mode):
    levels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    image = Image.frombytes(mode, (256, 256), levels.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    sides = {"resize": 256, "crop": 256}
    clipped = ImageNet.of(**sides).prepare(image)
    assert torch.equal(clipped[0], torch.from_numpy(np.minimum(levels, 255).astype(np.uint8)))
    scaled = ImageNet.of(**sides, depth="rescale").prepare(image)
    assert torch.equal(scaled[0], torch.from_numpy(np.round(levels / 257).astype(np.uint8)))
    assert torch.equal(scaled[0], scaled[2])


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "I;16"])
def test_depth_and_exif_leave_all_other_images_alone(mode):
    image = picture(97, 101, mode)
    assert differ(as_we_do([image], depth="rescale", exif="apply"), as_we_do([image])) == 0


@pytest.mark.parametrize(("mode", "transparency"), [("P", bytes(range(256))), ("P", 7), ("L", 7), ("P", "a text")])
def test_a_transparent_colour_is_dropped_without_a_word(mode, transparency):
    image = picture(64, 48, mode)
    image.info["transparency"] = transparency
    assert differ(as_we_do([image]), as_we_do([picture(64, 48, mode)])) == 0
    assert image.info["transparency"] == transparency


def test_an_image_is_prepared_as_uint8_of_one_shape():
    prepared = [ImageNet().prepare(picture(*size)) for size in [(300, 200), (10, 12), (224, 224)]]
    assert {(tuple(pixels.shape), pixels.dtype) for pixels in prepared} == {((3, 224, 224), torch.uint8)}


def test_the_users_image_is_left_alone():
    image = picture(32, 32)
    before = image.tobytes()
    ImageNet.of(resize=32, crop=32).prepare(image).zero_()
    assert image.tobytes() == before


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_finish_leaves_its_input_alone(dtype):
    batch = torch.full((2, 3, 4, 4), 7, dtype=dtype)
    ImageNet().finish(batch)
    assert (batch == 7).all()


def test_finish_gives_contiguous_nchw_whatever_it_gets():
    batch = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    finished = ImageNet().finish(batch.to(memory_format=torch.channels_last))
    assert finished.is_contiguous()
    assert torch.equal(finished, ImageNet().finish(batch))


def test_finish_stays_on_the_device_of_the_batch():
    finished = ImageNet().finish(torch.zeros(2, 3, 4, 4, dtype=torch.uint8, device="meta"))
    assert (finished.device.type, finished.dtype) == ("meta", torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_bits_are_those_of_the_preset_on_it():
    preprocessor = ImageNet.of(resize=8, crop=8)
    batch = torch.arange(256, dtype=torch.uint8, device="cuda").repeat(3).view(4, 3, 8, 8)
    preset = ImageClassification(resize_size=8, crop_size=8)
    assert differ(preprocessor.finish(batch), preset(batch)) == 0


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(size):
    with pytest.raises(ImageError) as error:
        ImageNet().prepare(Image.new("RGB", size))
    assert error.value.reason == "empty"


@pytest.mark.parametrize("size", [(1, 1366), (1366, 1), (2, 60000)])
def test_a_strip_that_would_grow_beyond_all_bounds_is_refused(size):
    with pytest.raises(ImageError) as error:
        ImageNet().prepare(Image.new("RGB", size))
    assert error.value.reason == "aspect"


def test_a_mode_without_a_way_to_rgb_is_refused():
    with pytest.raises(ImageError) as error:
        ImageNet().prepare(Image.new("La", (4, 4)))
    assert error.value.reason == "unsupported_mode"


@pytest.mark.parametrize(
    "params",
    [
        {"resize": 0},
        {"crop": 0},
        {"crop": 10**6},
        {"mean": (123.675, 116.28, 103.53)},
        {"mean": (0.5, 0.5)},
        {"mean": (float("nan"),) * 3},
        {"std": (0.2, 0.2, 0.0)},
        {"std": (58.395, 57.12, 57.375)},
        {"interpolation": "cubic"},
        {"size": 224},
        {"exif": "turn"},
        {"depth": 16},
    ],
)
def test_numbers_out_of_range_are_refused(params):
    with pytest.raises(pydantic.ValidationError):
        ImageNet.of(**params)
