"""extract(): the same line in memory, for a module of one's own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

import layertap
from tests.conftest import TINY


def small() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten())


def squash(image: Image.Image) -> torch.Tensor:
    return to_tensor(image.resize((12, 10)))


def test_module_of_ones_own_with_a_function_as_preprocessing(photos):
    model = small()
    found = list(layertap.extract(model, photos, ["0", "3"], preprocess=squash, batch_size=8, device="cpu"))
    assert [len(batch.records) for batch in found] == [8, 8, 4]
    paths = sorted(photos.rglob("*.jpg"))
    inputs = torch.stack([squash(Image.open(path).convert("RGB")) for path in paths[:8]])
    with torch.no_grad():
        assert torch.equal(found[0].values["0"], model[0](inputs))
    assert found[0].values["0"].min() < 0


def test_model_comes_back_in_its_mode_and_without_hooks(photos):
    model = small().train()
    model[2].eval()
    for _ in layertap.extract(model, photos, ["0"], preprocess=squash, batch_size=8, device="cpu"):
        break
    assert [module.training for module in model] == [True, True, False, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert next(model.parameters()).requires_grad


def test_bare_module_needs_preprocessing(photos):
    with pytest.raises(layertap.ConfigError, match="preprocess="):
        next(layertap.extract(small(), photos, ["0"], device="cpu"))


def test_bad_image_raises_unless_told_to_skip(photos, tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    images = [sorted(photos.rglob("*.jpg"))[0], tmp_path / "text.jpg"]
    with pytest.raises(layertap.ImageError, match=r"text\.jpg.*not_image"):
        list(layertap.extract(small(), images, ["0"], preprocess=squash, device="cpu"))
    (batch,) = layertap.extract(small(), images, ["0"], preprocess=squash, device="cpu", on_error="skip")
    assert [record.id for record in batch.records] == [str(images[0])]


def test_images_may_be_paths_bytes_pictures_arrays_and_records(photos):
    path = sorted(photos.rglob("*.jpg"))[0]
    picture = Image.open(path).convert("RGB")
    images = [
        path,
        str(path),
        path.read_bytes(),
        picture,
        np.asarray(picture),
        layertap.ImageRecord("mine", lambda: path.read_bytes(), {"label": "a"}),
    ]
    (batch,) = layertap.extract(small(), images, ["0"], preprocess=squash, device="cpu")
    assert [record.id for record in batch.records] == [str(path), str(path), "2", "3", "4", "mine"]
    assert all(torch.equal(row, batch.values["0"][0]) for row in batch.values["0"])


def test_values_taken_in_inference_mode_can_train_a_probe(photos, tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    images = [*sorted(photos.rglob("*.jpg"))[:3], tmp_path / "text.jpg"]
    with torch.inference_mode():
        (batch,) = layertap.extract(small(), images, ["3"], preprocess=squash, device="cpu", on_error="skip")
    probe = nn.Linear(batch.values["3"].shape[1], 2)
    probe(batch.values["3"]).sum().backward()
    assert probe.weight.grad is not None
    assert not batch.values["3"].requires_grad


class TokensFirst(nn.Module):
    """Puts the tokens before the batch, as some CLIP towers do inside, or folds windows into it."""

    def __init__(self, windows: bool):
        super().__init__()
        self.inner = nn.Identity()
        self.windows = windows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2)  # (N, C, L)
        return self.inner(tokens.reshape(-1, 3, 4) if self.windows else tokens.permute(2, 0, 1))


@pytest.mark.parametrize("size", [3, 2])  # as many tokens as the probe has images must not pass for them
@pytest.mark.parametrize("reduce", [[], [{"type": "mean_pool", "axes": "NLC"}]], ids=["whole", "reduced"])
def test_batch_axis_that_is_not_axis_0_is_moved_to_the_front(photographs, size, reduce):
    def prepare(image: Image.Image) -> torch.Tensor:
        return to_tensor(image.resize((1, size)))

    tap = {"layer": "inner", "reduce": reduce}
    for axis in ({}, {"batch_axis": 1}):
        (batch,) = layertap.extract(
            TokensFirst(False), photographs, [{**tap, **axis}], preprocess=prepare, device="cpu", batch_size=64
        )
        expected = torch.stack([prepare(image) for image in photographs]).flatten(2).transpose(1, 2)
        assert torch.equal(batch.values["inner"], expected.mean(1) if reduce else expected)


@pytest.mark.parametrize(
    ("axis", "why"),
    [(0, r"axis 0 of its value is not the image: .*; axis 1 is$"), (3, r"has the shape .*, and no axis 3$")],
)
def test_batch_axis_that_a_tap_names_is_not_looked_for(photographs, axis, why):
    taps = [{"layer": "inner", "batch_axis": axis}]
    with pytest.raises(layertap.TapError, match=why):
        next(layertap.extract(TokensFirst(False), photographs, taps, preprocess=squash, device="cpu"))


def test_windows_folded_into_the_batch_are_refused(photographs):
    with pytest.raises(layertap.TapError, match=r"not the image: 2 images gave .* and 3 gave .*[0-9]\)$"):
        next(layertap.extract(TokensFirst(True), photographs, "inner", preprocess=squash, device="cpu"))


def test_layer_that_runs_otherwise_on_a_later_batch_is_told_with_its_batch(photographs):
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.extra = nn.Identity(), nn.Identity()

        def forward(self, x):
            x = self.always(x)
            return self.extra(x) if x.mean() < 0.9 else x

    white = Image.new("RGB", (20, 20), "white")
    with pytest.raises(layertap.TapError, match=r"batch 1: .*'extra'"):
        list(layertap.extract(Moody(), [photographs[0], white], "extra", preprocess=squash, batch_size=1, device="cpu"))


def test_compiled_model_is_run_eagerly_with_a_notice(photos):
    model = small()
    compiled = torch.compile(model, backend="eager")
    with pytest.warns(UserWarning, match="eager module"):
        (batch, *_) = layertap.extract(compiled, photos, "0", preprocess=squash, device="cpu")
    (plain, *_) = layertap.extract(model, photos, "0", preprocess=squash, device="cpu")
    assert torch.equal(batch.values["0"], plain.values["0"])


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 2.5}, {"workers": 0}])
def test_numbers_that_make_no_sense_are_told(photos, wrong):
    with pytest.raises(layertap.ConfigError, match="must be a whole number, at least 1"):
        next(layertap.extract(small(), photos, "0", preprocess=squash, device="cpu", **wrong))


def test_endless_images_are_taken_as_they_are_needed(photographs):
    taken = 0

    def images():
        nonlocal taken
        for taken in itertools.count(1):
            yield photographs[taken % 2]

    found = layertap.extract(small(), images(), ["0"], preprocess=squash, batch_size=2, device="cpu")
    for _ in range(3):
        next(found)
    found.close()
    assert taken <= 2 * (3 + 3)


def test_model_by_name_with_a_plugin_of_ones_own(photos):
    found = layertap.extract("tiny/tiny", photos, ["classifier"], device="cpu", plugins=[TINY])
    assert torch.cat([batch.values["classifier"] for batch in found]).shape == (20, 10)


def features(images, **rest):
    (batch,) = layertap.extract(small(), images, ["0"], preprocess=squash, device="cpu", **rest)
    return batch


def test_an_array_has_its_channels_where_its_shape_says(photographs):
    pixels = np.asarray(photographs[0].crop((0, 0, 40, 30)))
    first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    images = [Image.fromarray(pixels), pixels, first, torch.from_numpy(pixels.copy()), torch.from_numpy(first)]
    values = features(images).values["0"]
    assert all(torch.equal(row, values[0]) for row in values)
    grey = np.asarray(photographs[0].crop((0, 0, 40, 30)).convert("L"))
    images = [Image.fromarray(grey), grey, grey[..., None], grey[None], torch.from_numpy(grey.copy())[None]]
    values = features(images).values["0"]
    assert all(torch.equal(row, values[0]) for row in values)


def test_an_array_that_both_ends_could_have_channels_is_taken_as_its_library_has_it(photographs):
    pixels = np.asarray(photographs[0].crop((0, 0, 3, 3)))
    images = [Image.fromarray(pixels), pixels, torch.from_numpy(pixels.transpose(2, 0, 1).copy())]
    values = features(images).values["0"]
    assert all(torch.equal(row, values[0]) for row in values)
    several = np.stack([np.asarray(photographs[0].crop((n, 0, n + 9, 8))) for n in range(4)])
    expected = features(list(several)).values["0"]
    for whole in (several, torch.from_numpy(several.transpose(0, 3, 1, 2).copy())):
        assert torch.equal(features(whole).values["0"], expected)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([np.zeros((4, 4, 3))], r"images\[0\] is float64, not uint8: .*give the image as it was before any transform"),
        ([np.zeros((4, 4), bool)], r"is bool, not uint8"),
        ([np.zeros((6, 4, 5), np.uint8)], r"has the shape \(6, 4, 5\)"),
        ([np.zeros((2, 4, 4, 3), np.uint8)], r"has the shape \(2, 4, 4, 3\)"),
        ([np.zeros((0, 4, 3), np.uint8)], "without any pixels"),
        ([{"image": 1}], r"the first item is a mapping with 0 images among its values \(image\)"),
        (np.zeros((9, 8, 3), np.uint8), "put it into a list"),
        (torch.zeros(8, 9), "put it into a list"),
        (7, "images is of type int, not a folder"),
    ],
)
def test_what_is_no_image_is_told_with_what_to_give(images, said):
    with pytest.raises(layertap.ConfigError, match=said):
        features(images)


def test_one_image_needs_no_list(photos, photographs):
    path = sorted(photos.rglob("*.jpg"))[0]
    record = layertap.ImageRecord("mine", path)
    for image in (photographs[0], path.read_bytes(), record, str(path)):
        assert len(features(image).records) == 1


class Pairs(torch.utils.data.Dataset):
    """A map-style data set as people write them: its length is all that ends it."""

    def __init__(self, photographs, transform=None, labels=None):
        self.photographs, self.transform, self.labels = photographs, transform, labels

    def __len__(self):
        return len(self.photographs)

    def __getitem__(self, index):
        image = self.photographs[index % len(self.photographs)]
        image = self.transform(image) if self.transform else image
        return image if self.labels is None else (image, self.labels[index])


def test_a_torch_dataset_gives_its_images_and_labels(photographs):
    expected = features(photographs).values["0"]
    plain = features(Pairs(photographs))
    assert torch.equal(plain.values["0"], expected)
    assert [record.meta for record in plain.records] == [{"label": None}] * 5
    labels = [3, "cat", torch.tensor(7), np.int64(9), {"boxes": []}]
    labelled = features(Pairs(photographs, labels=labels))
    assert torch.equal(labelled.values["0"], expected)
    assert [record.id for record in labelled.records] == ["0", "1", "2", "3", "4"]
    assert [record.meta["label"] for record in labelled.records] == [3, "cat", 7, 9, None]
    half = torch.utils.data.Subset(Pairs(photographs, labels=labels), [3, 0])
    assert [record.meta["label"] for record in features(half).records] == [9, 3]
    tensors = Pairs(photographs, transform=lambda image: torch.from_numpy(np.array(image)))
    assert torch.equal(features(tensors).values["0"], expected)


def test_an_iterable_dataset_is_taken_as_it_comes(photographs):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(image, number) for number, image in enumerate(photographs)])

    batch = features(Stream())
    assert torch.equal(batch.values["0"], features(photographs).values["0"])
    assert [record.meta["label"] for record in batch.records] == [0, 1, 2, 3, 4]


def to_input(image: Image.Image) -> torch.Tensor:
    return to_tensor(image.resize((12, 10)).convert("RGB"))


def ready(images, **asked) -> torch.Tensor:
    """All values of tap 0, of images that are taken as they are."""
    found = list(layertap.extract(small(), images, ["0"], device="cpu", **{"batch_size": 2, **asked}))
    return torch.cat([batch.values["0"] for batch in found])


@pytest.fixture
def inputs(photographs) -> torch.Tensor:
    return torch.stack([to_input(image) for image in photographs])


@pytest.fixture
def expected(inputs) -> torch.Tensor:
    """What the first layer gives for batches of two."""
    with torch.no_grad():
        return torch.cat([small()[0](inputs[start : start + 2]) for start in range(0, len(inputs), 2)])


LABELS = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    "given",
    [
        lambda inputs, photographs: list(inputs),
        lambda inputs, photographs: iter(inputs),
        lambda inputs, photographs: inputs,
        lambda inputs, photographs: [{"pixel_values": image, "name": "x"} for image in inputs],
        lambda inputs, photographs: ((image, 3) for image in inputs),
        lambda inputs, photographs: torch.utils.data.TensorDataset(inputs, torch.arange(len(inputs))),
        lambda inputs, photographs: Pairs(photographs, transform=to_input),
        lambda inputs, photographs: torch.utils.data.DataLoader(Pairs(photographs, transform=to_input), batch_size=2),
        lambda inputs, photographs: torch.utils.data.DataLoader(Pairs(photographs, to_input, LABELS), batch_size=2),
        lambda inputs, photographs: torch.utils.data.DataLoader([{"image": x, "label": 1} for x in inputs], 2),
    ],
    ids=["list", "iterator", "array", "mappings", "pairs", "tensors", "dataset", "loader", "labelled loader", "dicts"],
)
def test_float_tensors_are_taken_as_they_are(inputs, photographs, expected, given):
    assert torch.equal(ready(given(inputs, photographs)), expected)


def test_ready_tensors_come_with_their_labels_in_order(photographs, inputs):
    dataset = Pairs(photographs, to_input, [3, "cat", torch.tensor(7), np.int64(9), {"boxes": []}])
    found = layertap.extract(small(), dataset, ["0"], device="cpu", batch_size=2)
    records = [record for batch in found for record in batch.records]
    assert [record.meta["label"] for record in records] == [3, "cat", 7, 9, None]
    assert [record.id for record in records] == ["0", "1", "2", "3", "4"]
    loader = torch.utils.data.DataLoader(Pairs(photographs, to_input, [1, 2, 3, 4, 5]), batch_size=3)
    batches = list(layertap.extract(small(), loader, ["0"], device="cpu"))
    assert [[record.meta["label"] for record in batch.records] for batch in batches] == [[1, 2, 3], [4, 5]]


def test_loader_of_bytes_needs_preprocessing_and_loses_no_item(photographs):
    small_ones = [image.resize((12, 10)).convert("RGB") for image in photographs]
    pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in small_ones]
    loader = torch.utils.data.DataLoader(pixels, batch_size=2)
    with pytest.raises(layertap.ConfigError, match="preprocess="):
        ready(loader)
    found = list(layertap.extract(small(), loader, ["0"], preprocess=squash, device="cpu", batch_size=2))
    assert sum(len(batch.records) for batch in found) == 5


def test_loader_that_cannot_batch_its_images_names_the_cure(photographs):
    with pytest.raises(layertap.ConfigError, match=r"cannot batch its items .*give its `\.dataset`"):
        ready(torch.utils.data.DataLoader(Pairs(photographs)))


def test_hugging_face_dataset_gives_its_images_and_columns(photographs):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [image.convert("RGB") for image in photographs], "label": [0, 1, 1, 0, 1], "name": list("abcde")}
    kinds = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "name": datasets.Value("string"),
    }
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    (batch,) = layertap.extract(small(), dataset, ["0"], preprocess=to_input, device="cpu")
    assert batch.records[1].meta == {"label": 1, "name": "b"}
    expected = torch.stack([to_input(image.convert("RGB")) for image in photographs])
    with torch.no_grad():
        assert torch.equal(batch.values["0"], small()[0](expected))
    prepared = dataset.map(lambda row: {"pixel_values": to_input(row["image"])}, remove_columns="image")
    assert torch.equal(ready(prepared.with_format("torch"), batch_size=5), batch.values["0"])


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([torch.zeros(3, 9, 9), torch.zeros(3, 5, 9)], r"item 1 has the shape \(3, 5, 9\) per image"),
        ([torch.zeros(3, 9, 9), torch.zeros(3, 9, 9, dtype=torch.uint8)], "item 1 is not a float tensor"),
        ([{"one": torch.zeros(3, 9, 9), "two": torch.zeros(3, 9, 9)}], "2 images among its values"),
        (torch.utils.data.DataLoader(list("ab")), "gives batches of type"),
    ],
)
def test_tensors_that_cannot_be_batched_are_refused(images, said):
    with pytest.raises(layertap.ConfigError, match=said):
        ready(images)


def test_float_tensors_with_a_preprocessor_are_refused(inputs):
    with pytest.raises(layertap.ConfigError, match="without `preprocess`; leave it out"):
        ready(list(inputs), preprocess=squash)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda image: image, "gives a PIL image, not a tensor"),
        (lambda image: np.array(image), "gives a ndarray, not a tensor"),
        (lambda image: (squash(image),), "gives a tuple, not a tensor"),
        (lambda image: 7, "gives an int, not a tensor"),
        (lambda image: image.nothing, "raised AttributeError"),
    ],
)
def test_function_that_is_not_a_preprocessor_is_named_as_the_user_gave_it(photographs, function, said):
    with pytest.raises(layertap.PluginError, match=f"the function given as `preprocess` {said}"):
        list(layertap.extract(small(), photographs, ["0"], preprocess=function, device="cpu"))
