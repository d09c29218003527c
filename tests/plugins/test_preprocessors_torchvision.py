"""A pipeline in a configuration equals torchvision's own, bit for bit, and reports invalid arguments."""

from __future__ import annotations

import inspect
import json
import pickle

import jsonschema
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms import v2

import layertap
from layertap import ConfigError, ImageError
from layertap.config.loading import load_config
from layertap.config.schema import config_schema
from layertap.plugins import Plugins
from layertap_plugins.preprocessors.steps import Step
from layertap_plugins.preprocessors.torchvision import Pipeline
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config
from tests.plugins.test_imagenet import MODES, picture

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
FLOAT = {"ToDtype": {"dtype": "float32", "scale": True}}
NORMALIZE = {"Normalize": {"mean": MEAN, "std": STD}}
INTERPOLATION = v2.InterpolationMode

# Each pipeline as written in YAML, and as written in Python.
PIPELINES = {
    "imagenet": (
        [{"Resize": {"size": 256, "antialias": True}}, {"CenterCrop": 224}, FLOAT, NORMALIZE],
        [
            v2.Resize(256),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ],
    ),
    "on tensors": (
        ["ToImage", {"Resize": {"size": 40, "interpolation": "bicubic"}}, {"CenterCrop": [32, 36]}, FLOAT, NORMALIZE],
        [
            v2.ToImage(),
            v2.Resize(40, INTERPOLATION.BICUBIC),
            v2.CenterCrop([32, 36]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ],
    ),
    "floats before resizing": (
        ["ToImage", FLOAT, {"Resize": {"size": [20, 30], "antialias": False}}, NORMALIZE, "ToPureTensor"],
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize([20, 30], antialias=False),
            v2.Normalize(MEAN, STD),
            v2.ToPureTensor(),
        ],
    ),
    "grey": (
        [{"Grayscale": 1}, {"Resize": [28, 28]}, "PILToTensor", {"ConvertImageDtype": "float64"}],
        [v2.Grayscale(1), v2.Resize([28, 28]), v2.PILToTensor(), v2.ConvertImageDtype(torch.float64)],
    ),
    "border": (
        ["RGB", {"CenterCrop": 30}, {"Pad": {"padding": [1, 2, 3, 4], "fill": 9}}, {"Pad": 2}, "Identity"],
        [v2.RGB(), v2.CenterCrop(30), v2.Pad([1, 2, 3, 4], fill=9), v2.Pad(2), v2.Identity(), v2.ToImage()],
    ),
    "capped": (
        [{"Resize": {"size": 20, "max_size": 60, "interpolation": "lanczos"}}, {"CenterCrop": [16]}, "ToImage"],
        [v2.Resize(20, INTERPOLATION.LANCZOS, max_size=60), v2.CenterCrop([16]), v2.ToImage()],
    ),
    "longer side": (
        [{"Resize": {"size": None, "max_size": 33}}, {"CenterCrop": 33}, {"ToDtype": "float16"}],
        [v2.Resize(None, max_size=33), v2.CenterCrop(33), v2.ToImage(), v2.ToDtype(torch.float16)],
    ),
}
BOTH = pytest.mark.parametrize("name", PIPELINES)


def ours(transforms, images, **policies):
    preprocessor = Pipeline.of(transforms=transforms, **policies)
    pixels = torch.stack([preprocessor.prepare(image) for image in images])
    return preprocessor.finish(pixels)


@BOTH
def test_photographs_give_the_bits_of_the_pipeline_made_by_hand(photographs, name):
    written, by_hand = PIPELINES[name]
    theirs = torch.stack([torch.as_tensor(v2.Compose(by_hand)(image)) for image in photographs])
    found = ours(written, photographs)
    assert (found.dtype, type(found)) == (theirs.dtype, torch.Tensor)
    assert torch.equal(found, theirs)
    assert found.is_contiguous()


@BOTH
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_bits_of_its_rgb_image(name, mode):
    written, by_hand = PIPELINES[name]
    images = [picture(*size, mode) for size in [(61, 43), (40, 90), (1, 1), (2, 3)]]
    theirs = [torch.as_tensor(v2.Compose(by_hand)(image.convert("RGB"))) for image in images]
    assert torch.equal(ours(written, images), torch.stack(theirs))


@BOTH
def test_transforms_that_work_on_a_batch_are_deferred_to_it(name):
    preprocessor = Pipeline.of(transforms=PIPELINES[name][0])
    expected = torch.float32 if name == "floats before resizing" else torch.uint8
    assert preprocessor.prepare(picture(50, 40)).dtype == expected


@BOTH
def test_a_batch_has_the_bits_of_its_images_one_by_one(name, photographs):
    preprocessor = Pipeline.of(transforms=PIPELINES[name][0])
    pixels = torch.stack([preprocessor.prepare(image) for image in photographs])
    before = pixels.clone()
    together = preprocessor.finish(pixels)
    assert torch.equal(together, torch.cat([preprocessor.finish(one[None]) for one in pixels]))
    assert torch.equal(preprocessor.finish(pixels.to(memory_format=torch.channels_last)), together)
    assert torch.equal(pixels, before)


def test_pipeline_in_a_configuration_runs(photos):
    transforms = [{"Resize": [16, 16]}, {"ToDtype": {"dtype": "float32", "scale": True}}]
    changes = {"taps": [{"layer": "features.0", "reduce": "mean_pool"}]}
    piped = config(photos, None, preprocess={"type": "torchvision", "transforms": transforms}, **changes)
    report = layertap.run(piped, plugins=[TINY])
    assert (report.planned, report.kept) == (20, 20)


def test_pipeline_travels_to_another_process():
    preprocessor, image = Pipeline.of(transforms=PIPELINES["imagenet"][0]), picture(61, 43)
    other = pickle.loads(pickle.dumps(preprocessor))
    assert torch.equal(other.prepare(image), preprocessor.prepare(image))
    assert torch.equal(pickle.loads(pickle.dumps(preprocessor)).prepare(image), preprocessor.prepare(image))


def test_enough_is_what_is_only_made_smaller():
    def enough(*transforms):
        return Pipeline.of(transforms=list(transforms)).enough((4000, 3000))

    assert enough({"Resize": 256}, {"CenterCrop": 224}) == (256, 256)
    assert enough({"Resize": [20, 30]}) == (30, 30)
    assert enough({"Resize": {"size": 256, "interpolation": "nearest-exact"}}, {"CenterCrop": 224}) is None
    assert enough({"CenterCrop": 224}) is None


# The available transforms


def exported():
    found = {name: getattr(v2, name) for name in dir(v2)}
    return {name: cls for name, cls in found.items() if inspect.isclass(cls) and issubclass(cls, v2.Transform)}


def built(name):
    arguments = {"CenterCrop": 8, "ConvertImageDtype": "float32", "Pad": 3, "Resize": [8, 8], "ToDtype": "float32"}
    arguments["Normalize"] = {"mean": [0.5], "std": [0.5]}
    needs_floats = [] if name != "Normalize" else [FLOAT]
    return Pipeline.of(transforms=[*needs_floats, {name: arguments.get(name)}, {"CenterCrop": 8}])


@pytest.mark.parametrize("name", Step.model_fields)
def test_every_transform_is_torchvisions_and_leaves_nothing_to_chance(name):
    assert name in exported()
    preprocessor, image = built(name), picture(20, 30)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = preprocessor.prepare(image)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(preprocessor.prepare(image), first)


def test_every_other_transform_is_refused_by_name():
    others = exported().keys() - Step.model_fields.keys()
    assert {"Lambda", "RandomCrop", "GaussianNoise", "Compose", "FiveCrop", "Transform", "ToTensor"} <= others
    for name in others:
        with pytest.raises(ValueError, match=f"'{name}'"):
            Pipeline.of(transforms=[{name: {}}])


def refused(transforms, tmp_path):
    path = tmp_path / "c.yaml"
    preprocess = {"type": "torchvision", "transforms": transforms}
    path.write_text(yaml.safe_dump({"source": "samples", "sink": "memory", "preprocess": preprocess}))
    plugins = Plugins.load()
    with pytest.raises(ConfigError) as error:
        load_config(path, None, plugins).build("preprocess", plugins)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("transforms", "said"),
    [
        ([{"Resise": 5}], "transforms[0]: 'Resise' is not a transform that can be named here; "),
        ([{"Resise": 5}], "did you mean 'Resize'?"),
        (["ToImage", {"RandomResizedCrop": 5}], "transforms[1]: 'RandomResizedCrop' is not a transform"),
        (
            [{"FiveCrop": 5}],
            "transforms[0]: 'FiveCrop' gives five crops per image, and an output has one row",
        ),
        (["TenCrop"], "transforms[0]: 'TenCrop' gives ten crops per image"),
        ([{"Lambda": "os.system"}], "'Lambda' is not a transform"),
        (["os.system"], "'os.system' is not a transform"),
        (["ToTensor"], "instead of 'ToTensor' write `ToImage` and `ToDtype: {dtype: float32, scale: true}`"),
        ([{"Resize": {"siez": 5}}], "transforms[0].Resize: 'siez' is not an argument; did you mean 'size'?"),
        ([{"ToImage": {"a": 1}}], "transforms[0].ToImage: 'a' is not an argument"),
        ([{"CenterCrop": "wide"}], "transforms[0].CenterCrop: should be a valid integer, not 'wide'"),
        (["Normalize"], "transforms[0]: Normalize needs its mean and std"),
        ([{"Normalize": {"mean": MEAN}}], "transforms[0].Normalize.std: is required"),
        ([{"Normalize": {"mean": MEAN, "std": [0.0]}}], "Normalize.std[0]: should be greater than 0"),
        ([{"ToDtype": "float3"}], "transforms[0].ToDtype: should be 'uint8', 'float16'"),
        ([{"ToDtype": {"dtype": "torch.float32"}}], "ToDtype.dtype: should be 'uint8'"),
        ([{"Resize": {"size": 5, "interpolation": "cubic"}}], "Resize.interpolation: should be 'nearest'"),
        ([{"CenterCrop": 5, "ToImage": {}}], "transforms[0]: must be one transform by name"),
        ([5], "transforms[0]: must be one transform by name"),
        ([], "transforms: "),
        ("CenterCrop", "transforms: should be a valid array"),
    ],
)
def test_mistakes_are_reported_with_their_place(transforms, said, tmp_path):
    message = refused(transforms, tmp_path)
    assert f"preprocess.{said}" in message if said.startswith("transforms") else said in message


@pytest.mark.parametrize(
    ("transforms", "said"),
    [
        ([{"Resize": 256}], "would get the shapes"),
        (["ToImage"], "add a CenterCrop, or give Resize a height and a width"),
        ([{"CenterCrop": 8}, NORMALIZE], "Normalize: torchvision rejects it: Input tensor should be a float tensor"),
        ([FLOAT, "ToImage", NORMALIZE], "Normalize: torchvision rejects it"),
        ([{"Resize": {"size": 8, "max_size": 8}}, {"CenterCrop": 8}], "Resize: torchvision rejects it: max_size = 8"),
        ([{"Resize": {"size": None}}, {"CenterCrop": 8}], "Resize: torchvision rejects it: max_size must be"),
        (
            [{"CenterCrop": 8}, FLOAT, {"Normalize": {"mean": [0.5] * 2, "std": [0.5]}}],
            "Normalize: torchvision rejects",
        ),
    ],
)
def test_transforms_that_do_not_fit_together_are_reported_before_the_first_image(transforms, said, photos, tmp_path):
    piped = config(photos, tmp_path / "out", preprocess={"type": "torchvision", "transforms": transforms})
    with pytest.raises(ConfigError) as error:
        layertap.run(piped, plugins=[TINY])
    assert said in str(error.value)
    assert "preprocess.transforms: " in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def schema():
    return jsonschema.Draft202012Validator(config_schema(Plugins.load()))


@pytest.mark.parametrize(
    ("transforms", "good"),
    [
        *[(written, True) for written, _ in PIPELINES.values()],
        ([{"ToImage": None}, {"Grayscale": {}}, "Grayscale", {"Resize": {"size": [1, 2]}}], True),
        ([{"CenterCrop": None}], False),
        (["CenterCrop"], False),
        ([{"CenterCrop": 0}], False),
        ([{"CenterCrop": [1, 2, 3]}], False),
        ([{"RandomCrop": 5}], False),
        ([{"ToImage": {}, "RGB": {}}], False),
        ([{}], False),
        ([{"ToDtype": {"dtype": "int"}}], False),
        ([{"ToImage": 5}], False),
        ([], False),
    ],
    ids=str,
)
def test_the_schema_takes_what_loads(schema, transforms, good):
    whole = {"source": "samples", "sink": "memory", "preprocess": {"type": "torchvision", "transforms": transforms}}
    assert schema.is_valid(whole) is good
    plugins = Plugins.load()
    if good:
        load_config(whole, None, plugins).build("preprocess", plugins)
    else:
        with pytest.raises(ConfigError):
            load_config(whole, None, plugins).build("preprocess", plugins)


def test_parameters_are_shown_as_they_would_be_written():
    written = PIPELINES["longer side"][0]
    told = json.loads(Pipeline.of(transforms=written).params.model_dump_json())["transforms"]
    resize = {"size": None, "interpolation": "bilinear", "max_size": 33, "antialias": True}
    assert told == [{"Resize": resize}, {"CenterCrop": {"size": 33}}, {"ToDtype": {"dtype": "float16", "scale": False}}]
    assert Pipeline.of(transforms=told).params == Pipeline.of(transforms=written).params


# Images that cannot be used


@pytest.mark.parametrize(
    ("transforms", "size"),
    [
        ([{"Resize": 256}, {"CenterCrop": 224}], (1, 60000)),
        ([{"Resize": 256}, {"CenterCrop": 224}], (60000, 1)),
        (["ToImage", {"Resize": [224, 224]}], (1, 500_000)),
        ([{"Resize": {"size": 20, "max_size": 60}}, {"CenterCrop": 16}], (1, 61)),
        ([{"Resize": {"size": None, "max_size": 60}}, {"CenterCrop": 16}], (1, 61)),
    ],
)
def test_a_strip_that_would_explode_or_vanish_is_refused(transforms, size):
    with pytest.raises(ImageError) as error:
        Pipeline.of(transforms=transforms).prepare(Image.new("RGB", size))
    assert error.value.reason == "aspect"


def test_a_strip_that_stays_small_is_none_of_those():
    pixels = Pipeline.of(transforms=[{"Resize": [8, 8]}]).prepare(Image.new("RGB", (1, 500_000), (1, 2, 3)))
    assert (pixels == torch.tensor([1, 2, 3]).view(3, 1, 1)).all()
