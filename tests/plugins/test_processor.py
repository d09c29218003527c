"""The preprocessor gives the same as transformers' own processors, bit for bit, in two halves if possible."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from PIL import Image

from layertap import ImageError
from tests.published import as_we_do, picture, pictures, processed

transformers = pytest.importorskip("transformers", reason="needs `pip install 'layertap[transformers]'`")

from layertap_plugins.preprocessors.processor import ImageProcessor  # noqa: E402  (after the reason to skip)

PROCESSORS = [
    ("ViTImageProcessor", {}, True),
    ("BitImageProcessor", {}, True),
    ("CLIPImageProcessor", {}, True),
    ("SiglipImageProcessor", {}, True),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}, True),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}, True),
    ("BeitImageProcessor", {}, True),
    ("DINOv3ViTImageProcessor", {}, False),  # rescales before it resizes
    ("ViTImageProcessorPil", {}, False),
    ("ViTImageProcessor", {"do_normalize": False}, True),
]


@pytest.mark.parametrize(("name", "numbers", "split"), PROCESSORS)
def test_the_preprocessor_is_the_processor_to_the_bit(name, numbers, split):
    processor = getattr(transformers, name)(**numbers)
    preprocessor = ImageProcessor.around(processor)
    assert preprocessor.params.split == split
    images = pictures()
    ours = as_we_do(preprocessor, images)
    assert torch.equal(ours, processed(processor, images))
    assert (ours.dtype, ours.is_contiguous()) == (torch.float32, True)
    assert preprocessor.prepare(images[0]).dtype == (torch.uint8 if split else torch.float32)


@pytest.mark.parametrize("name", ["DetrImageProcessor", "LlavaNextImageProcessor", "Qwen2VLImageProcessor"])
def test_a_processor_that_gives_several_shapes_is_not_a_preprocessor(name):
    assert ImageProcessor.around(getattr(transformers, name)()) is None


def test_enough_is_the_shorter_side_where_that_is_what_is_resized():
    made = {name: getattr(transformers, name)() for name in ("CLIPImageProcessor", "ViTImageProcessor")}
    assert ImageProcessor.around(made["CLIPImageProcessor"]).enough((500, 375)) == (224, 224)
    assert ImageProcessor.around(made["ViTImageProcessor"]).enough((500, 375)) is None


def test_the_preprocessor_is_data_and_survives_pickle():
    preprocessor = ImageProcessor.around(transformers.ViTImageProcessor())
    data = preprocessor.params.model_dump(mode="json")
    assert ImageProcessor.of(**json.loads(json.dumps(data))).params == preprocessor.params
    image = picture(30, 20)
    assert torch.equal(pickle.loads(pickle.dumps(preprocessor)).prepare(image), preprocessor.prepare(image))


def test_images_that_cannot_be_used_are_refused():
    preprocessor = ImageProcessor.around(transformers.CLIPImageProcessor())
    refused = [
        (picture(1, 4000), "aspect"),
        (Image.new("RGB", (0, 3)), "empty"),
        (Image.new("La", (4, 4)), "unsupported_mode"),
    ]
    for image, reason in refused:
        with pytest.raises(ImageError) as error:
            preprocessor.prepare(image)
        assert error.value.reason == reason
