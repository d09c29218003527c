"""Letterbox, squash and identity give the same bits as code by hand, and treat odd images alike."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.Image import Resampling
from torch import nn
from torchvision.transforms import v2

import layertap
from layertap import ImageError
from layertap.images.decoding.decode import decode
from layertap.records import PROFILES
from layertap_plugins.preprocessors.identity import Identity
from layertap_plugins.preprocessors.imagenet import ImageNet
from layertap_plugins.preprocessors.letterbox import Letterbox
from layertap_plugins.preprocessors.squash import Squash
from layertap_plugins.preprocessors.torchvision import Pipeline
from tests.plugins.test_imagenet import FILTERS, MODES, picture

NORMALISED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def prepared(preprocessor, images):
    return preprocessor.finish(torch.stack([preprocessor.prepare(image) for image in images]))


def floats(image, mean=(0.0,) * 3, std=(1.0,) * 3):
    """One RGB image as torchvision's ToTensor and Normalize give it."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    column = [torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std)]
    return pixels.sub(column[0]).div(column[1])


def boxed(image, width, height, resample, fill=(114, 114, 114)):
    """A letterbox with Pillow only."""
    ratio = min(width / image.width, height / image.height)
    size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    canvas = Image.new("RGB", (width, height), fill)
    canvas.paste(image.resize(size, resample), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


# Bits

side = st.integers(1, 120)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(side, side), min_size=1, max_size=3),
    mode=st.sampled_from(MODES),
    height=st.integers(1, 64),
    width=st.integers(1, 64),
    interpolation=st.sampled_from(FILTERS),
)
@example(sizes=[(1, 1), (1, 120), (120, 1)], mode="L", height=64, width=3, interpolation="bilinear")
def test_any_image_gives_the_bits_of_pillow_and_torchvision(sizes, mode, height, width, interpolation):
    images = [picture(*size, mode) for size in sizes]
    resample, common = Resampling[interpolation.upper()], {"interpolation": interpolation, **NORMALISED}
    colours = [image.convert("RGB") for image in images]

    squashed = prepared(Squash.of(size=(height, width), **common), images)
    filled = v2.Resize([height, width], v2.InterpolationMode(interpolation))
    assert torch.equal(squashed, torch.stack([floats(filled(image), **NORMALISED) for image in colours]))

    fitted = prepared(Letterbox.of(size=(height, width), fill=(1, 2, 3), **common), images)
    by_hand = [floats(boxed(image, width, height, resample, (1, 2, 3)), **NORMALISED) for image in colours]
    assert torch.equal(fitted, torch.stack(by_hand))


@pytest.mark.parametrize("kind", [Squash, Letterbox])
def test_photographs_give_the_bits_of_the_loop_by_hand(photographs, kind):
    def by_hand(image):
        whole = image.resize((224, 224), Resampling.BILINEAR)
        return whole if kind is Squash else boxed(image, 224, 224, Resampling.BILINEAR)

    ours = prepared(kind.of(size=224), photographs)
    assert torch.equal(ours, torch.stack([floats(by_hand(image)) for image in photographs]))
    assert ours.min() >= 0
    assert ours.max() <= 1


def test_identity_leaves_the_pixels_as_they_are(photographs):
    images = [image.crop((0, 0, 300, 200)) for image in photographs]
    ours = prepared(Identity.of(size=(200, 300)), images)
    assert torch.equal(ours, torch.stack([floats(image) for image in images]))
    raw = prepared(Identity.of(size=(200, 300), scale=False, mean=(123.675, 116.28, 103.53)), images)
    assert torch.equal((raw + torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)).round() / 255, ours)


# Shapes


@pytest.mark.parametrize(
    ("size", "box", "where"),
    [
        ((500, 375), 640, (0, 80, 640, 560)),  # made larger until it fits
        ((375, 500), (320, 640), (200, 0, 440, 320)),
        ((101, 100), 50, (0, 0, 50, 50)),
        ((100, 49), 50, (0, 13, 50, 37)),  # 24 rows of 50: thirteen above and below
        ((100, 50), 51, (0, 12, 51, 38)),  # 26 rows, and 25 left: the odd one goes below
        ((1, 1000), 100, (49, 0, 50, 100)),
        ((1000, 1), 100, (0, 49, 100, 50)),
        ((1, 1), 8, (0, 0, 8, 8)),
    ],
)
def test_letterbox_keeps_the_aspect_and_centres(size, box, where):
    pixels = Letterbox.of(size=box, fill=7).prepare(Image.new("RGB", size, (255, 0, 128)))
    left, top, right, bottom = where
    inner = pixels[:, top:bottom, left:right]
    assert all((inner[band] == value).all() for band, value in enumerate((255, 0, 128)))
    pixels[:, top:bottom, left:right] = 7
    assert (pixels == 7).all()


@pytest.mark.parametrize(
    "preprocessor", [Letterbox.of(size=(20, 30)), Squash.of(size=(20, 30)), Identity.of(size=(20, 30))]
)
def test_size_is_height_and_width(preprocessor):
    pixels = preprocessor.prepare(picture(30, 20))
    assert (pixels.shape, pixels.dtype) == ((3, 20, 30), torch.uint8)


def test_an_image_of_another_size_is_refused_by_identity_alone():
    for size in [(30, 20), (21, 20), (1, 1)]:
        with pytest.raises(ImageError) as error:
            Identity.of(size=20).prepare(picture(*size))
        assert error.value.reason == "shape"


def test_images_of_another_size_are_left_out_of_a_run(photographs):
    images = [
        image.resize(size) for image, size in zip(photographs, [(640, 480), (480, 640), (640, 480)], strict=False)
    ]
    preprocess = {"type": "identity", "size": [480, 640]}
    model = nn.Sequential(nn.Flatten(), nn.Identity())
    (batch,) = layertap.extract(model, images, ["1"], preprocess=preprocess, device="cpu", on_error="skip")
    assert [record.id for record in batch.records] == ["0", "2"]
    kept = torch.stack([floats(image) for image in (images[0], images[2])])
    assert torch.equal(torch.as_tensor(batch.values["1"]), kept.flatten(1))


# Odd images

SIZED = [
    ImageNet.of(resize=12, crop=8),
    Letterbox.of(size=10),
    Squash.of(size=(8, 12)),
    Pipeline.of(transforms=[{"Resize": [9, 9]}, {"ToDtype": {"dtype": "float32", "scale": True}}]),
]
EVERY = [*SIZED, Identity.of(size=(48, 64))]


def named(preprocessor):
    return type(preprocessor).__name__


def like(preprocessor, **policies):
    """The same preprocessor with other policies."""
    return type(preprocessor)(preprocessor.params.model_copy(update=policies))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preprocessor", EVERY, ids=named)
def test_every_mode_gives_what_pillows_conversion_gives(preprocessor, mode):
    image = picture(64, 48, mode)
    assert torch.equal(preprocessor.prepare(image), preprocessor.prepare(image.convert("RGB")))


@pytest.mark.parametrize("preprocessor", SIZED, ids=named)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_tiny_images_and_strips_are_prepared_to_the_same_shape(preprocessor, size):
    shape = preprocessor.prepare(picture(64, 48)).shape
    assert preprocessor.prepare(picture(*size)).shape == shape


@pytest.mark.parametrize("preprocessor", EVERY, ids=named)
@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(preprocessor, size):
    with pytest.raises(ImageError) as error:
        preprocessor.prepare(Image.new("RGB", size))
    assert error.value.reason == "empty"


@pytest.mark.parametrize("preprocessor", EVERY, ids=named)
@pytest.mark.parametrize("policies", [{}, {"alpha": "white"}])
def test_a_mode_without_a_way_to_rgb_is_refused(preprocessor, policies):
    with pytest.raises(ImageError) as error:
        like(preprocessor, **policies).prepare(Image.new("La", (64, 48)))
    assert error.value.reason == "unsupported_mode"


@pytest.mark.parametrize("preprocessor", [Letterbox.of(size=64), Squash.of(size=64)], ids=named)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_very_long_strip_costs_no_more_than_its_result(preprocessor, profile):
    preprocessor = like(preprocessor)
    preprocessor.profile = PROFILES[profile]
    for size in [(1, 4_000_000), (4_000_000, 1)]:
        assert (preprocessor.prepare(Image.new("L", size, 9)) == 9).any()


@pytest.mark.parametrize("preprocessor", EVERY, ids=named)
def test_orientation_and_depth_are_followed_where_asked_for(preprocessor):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture(48, 64).save(file, "PNG", exif=exif)
    image = decode(file.getvalue())
    turned = like(preprocessor, exif="apply").prepare(image)
    assert torch.equal(turned, preprocessor.prepare(ImageOps.exif_transpose(image)))

    deep = Image.fromarray(np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64))
    eight = Image.fromarray(np.round(np.asarray(deep) / 257).astype(np.uint8))
    assert torch.equal(like(preprocessor, depth="rescale").prepare(deep), preprocessor.prepare(eight))
    clipped = Image.fromarray(np.minimum(np.asarray(deep), 255).astype(np.uint8))
    assert torch.equal(preprocessor.prepare(deep), preprocessor.prepare(clipped))


def transparent(mode):
    """A picture with transparency as in a file, and its colours and alpha separately."""
    colours = np.array(picture(64, 48, "L" if mode in ("LA", "L") else "RGB"))
    alpha = np.array(picture(64, 48, "L", seed=1))
    alpha[:10], alpha[10:20] = 0, 255
    if mode in ("RGBA", "LA"):
        image = Image.fromarray(np.dstack([colours, alpha]), mode)
    else:
        # One level or colour means transparent, or every colour of a palette has an alpha.
        image = Image.fromarray(colours).convert(mode)
        key = {"RGB": (1, 2, 3), "L": 17}.get(mode, bytes(np.arange(256, dtype=np.uint8)))
        if mode == "RGB":
            image.paste((1, 2, 3), (0, 0, 64, 10))
            alpha = np.where((np.asarray(image) == [1, 2, 3]).all(axis=2), 0, 255)
        else:
            indices = np.asarray(image)
            alpha = np.where(indices == 17, 0, 255) if mode == "L" else indices
        image.info["transparency"] = key
    file = io.BytesIO()
    image.save(file, "PNG", **({"transparency": image.info["transparency"]} if "transparency" in image.info else {}))
    read = decode(file.getvalue())
    return read, np.asarray(picture_colours(image)), alpha


def picture_colours(image):
    image = image.copy()
    image.info.pop("transparency", None)
    return image.convert("RGB")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
@pytest.mark.parametrize(("alpha", "level"), [("white", 255), ("black", 0)])
def test_transparency_is_laid_over_white_or_black(mode, alpha, level):
    image, colours, cover = transparent(mode)
    share = cover[..., None] / 255
    expected = colours * share + level * (1 - share)
    pixels = Identity.of(size=(48, 64), alpha=alpha).prepare(image).permute(1, 2, 0).numpy()
    assert np.abs(pixels - expected).max() <= 1
    assert (pixels[cover == 0] == level).all()
    assert (pixels[cover == 255] == colours[cover == 255]).all()
    assert (cover == 0).any()
    dropped = Identity.of(size=(48, 64)).prepare(image).permute(1, 2, 0).numpy()
    assert (dropped == colours).all()


@pytest.mark.parametrize("preprocessor", EVERY, ids=named)
def test_transparency_is_settled_before_resizing(preprocessor):
    image = transparent("RGBA")[0]
    over = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert torch.equal(like(preprocessor, alpha="white").prepare(image), preprocessor.prepare(over))


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("RGBA", "LA", "PA")])
@pytest.mark.parametrize("transparency", [None, "a text", b"xyz"])
def test_opaque_images_are_left_alone(mode, transparency):
    image = picture(64, 48, mode)
    if transparency is not None and not (mode == "P" and isinstance(transparency, bytes)):
        image.info["transparency"] = transparency
    expected = Squash.of(size=8).prepare(picture(64, 48, mode))
    assert torch.equal(Squash.of(size=8, alpha="white").prepare(image), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preprocessor", EVERY, ids=named)
def test_greyscale_is_replicated_or_refused(preprocessor, mode):
    image, strict = picture(64, 48, mode), like(preprocessor, grey="fail")
    if mode in ("1", "L", "LA", "I", "F", "I;16"):
        with pytest.raises(ImageError) as error:
            strict.prepare(image)
        assert error.value.reason == "greyscale"
    else:
        assert torch.equal(strict.prepare(image), preprocessor.prepare(image))


# The float half


@pytest.mark.parametrize("preprocessor", EVERY, ids=named)
def test_a_batch_has_the_bits_of_its_images_one_by_one(preprocessor, photographs):
    images = [image.resize((64, 48)) for image in photographs]
    pixels = torch.stack([preprocessor.prepare(image) for image in images])
    assert pixels.dtype == torch.uint8
    together = preprocessor.finish(pixels)
    assert torch.equal(together, torch.cat([preprocessor.finish(one[None]) for one in pixels]))
    assert torch.equal(preprocessor.finish(pixels.to(memory_format=torch.channels_last)), together)
    assert together.is_contiguous()
    assert pixels.dtype == torch.uint8


@pytest.mark.parametrize("preprocessor", EVERY, ids=named)
def test_a_preprocessor_travels_to_another_process(preprocessor):
    image = picture(64, 48)
    preprocessor.prepare(image)
    other = pickle.loads(pickle.dumps(preprocessor))
    assert torch.equal(other.prepare(image), preprocessor.prepare(image))


# The fast profile


@pytest.mark.parametrize("kind", [Letterbox, Squash])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_the_fast_profile_is_off_by_a_level_at_times(photographs, kind, interpolation):
    exact, quick = (kind.of(size=224, interpolation=interpolation) for _ in range(2))
    quick.profile = PROFILES["fast"]
    for image in photographs:
        off = (quick.prepare(image).int() - exact.prepare(image).int()).abs()
        assert off.max() <= (2 if interpolation != "lanczos" else 0)
        assert (off > 0).double().mean() < 0.02


def test_enough_is_what_is_only_made_smaller():
    assert Squash.of(size=(100, 50)).enough((4000, 3000)) == (100, 100)
    assert Letterbox.of(size=(320, 640)).enough((4000, 3000)) == (640, 480)
    assert Letterbox.of(size=640, interpolation="nearest").enough((4000, 3000)) is None
    assert Squash.of(interpolation="nearest").enough((4000, 3000)) is None
    assert Identity.of(size=8).enough((8, 8)) is None


@pytest.mark.parametrize("kind", [Letterbox, Squash])
@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_a_scaled_photograph_gives_much_the_same(photographs, kind, exif):
    block = Image.Exif()
    block[0x0112] = 6
    file = io.BytesIO()
    photographs[0].resize((2000, 1500)).save(file, "JPEG", quality=95, exif=block)
    preprocessor = kind.of(size=(240, 320), exif=exif)
    scaled, whole = decode(file.getvalue(), enough=preprocessor.enough), decode(file.getvalue())
    assert scaled.width < whole.width
    assert (preprocessor.prepare(scaled).double() - preprocessor.prepare(whole).double()).abs().mean() < 3


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        (Letterbox, {"size": 0}),
        (Letterbox, {"size": (640,)}),
        (Letterbox, {"fill": 256}),
        (Letterbox, {"fill": (1, 2)}),
        (Letterbox, {"alpha": "grey"}),
        (Squash, {"size": 10**6}),
        (Squash, {"mean": (123.675, 116.28, 103.53)}),
        (Squash, {"grey": "drop"}),
        (Identity, {}),
        (Identity, {"size": 8, "mean": (123.675, 116.28, 103.53)}),
        (Identity, {"size": 8, "scale": False, "mean": (256, 0, 0)}),
    ],
)
def test_numbers_out_of_range_are_refused(kind, params):
    with pytest.raises(pydantic.ValidationError):
        kind.of(**params)
