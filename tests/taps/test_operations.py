"""Operations as taps: every value is that of an independent computation, bit for bit, and nothing stays on."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack as modes

import layertap
from layertap.taps.tapped import TappedModel
from tests.models import noise, out_of_place, seeded


def run(model, taps, x, **options):
    """The values of a whole forward and of one that stops early, which must be the same."""
    with torch.no_grad(), layertap.tap(model, taps, **options) as tapped:
        first = tapped.run(x)
        again = tapped.run(x)
        tapped.module(x)
        plain = dict(tapped)
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert torch.equal(value, plain[name])
    assert not modes()
    return first


def refused(model, taps, x):
    with torch.no_grad(), layertap.tap(model, taps) as tapped, pytest.raises(layertap.TapError) as error:
        tapped.run(x)
    assert "\n" not in str(error.value)
    return str(error.value)


class Busy(nn.Module):
    """Adds twice, in place and not, between and after its layers, and changes everything in place afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.act = nn.ReLU(inplace=True)
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        y += x
        y = self.act(y)
        y = F.relu(y - 0.1, inplace=True)
        z = torch.add(self.inner(y), y)
        z.mul_(2).sub_(1)
        z[:, 0] = 0
        return z.chunk(3, dim=1)[1].sigmoid()


def busy_by_hand(model: Busy, x: Tensor) -> dict[str, Tensor]:
    first = model.one(x) + x
    less = F.relu(first) - 0.1
    relu = F.relu(less)
    second = model.inner(relu) + relu
    product = second * 2
    difference = product - 1
    written = torch.cat([torch.zeros(len(x), 1), difference[:, 1:]], 1)
    return {
        ".@add:0": first,
        ".@sub:0": less,
        ".@relu": relu,
        "<.@relu": less,
        ".@add:1": second,
        "<.@add:1": model.inner(relu),
        "<.@add:1[1]": relu,
        ".@mul": product,
        "<.@mul": second,
        ".@sub:1": difference,
        ".@setitem": written,
        "<.@setitem": difference,
        ".@chunk[1]": written[:, 1:2],
        ".@sigmoid": written[:, 1:2].sigmoid(),
    }


def test_values_are_those_of_the_operation_whatever_changes_them_afterwards():
    model, x = seeded(Busy), noise(4, 3)
    with torch.no_grad():
        expected = busy_by_hand(model, x)
    found = run(model, list(expected), x)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("tap", [".@add:0", "<.@mul", ".@sigmoid", "<.@setitem"])
def test_each_alone_stops_the_forward_and_is_the_same(tap):
    model, x = seeded(Busy), noise(4, 3)
    with torch.no_grad():
        assert torch.equal(run(model, tap, x)[tap], busy_by_hand(model, x)[tap])


def test_only_the_layers_own_operations_count():
    model, x = seeded(Busy), noise(4, 3)
    assert "what ran there: add:0, sub:0, relu, add:1, mul, sub:1, setitem, chunk, sigmoid" in refused(
        model, ".@linear", x
    )
    assert set(run(model, ["inner.0@linear", "inner.1.0@linear"], x)) == {"inner.0@linear", "inner.1.0@linear"}
    assert "it runs none of its own" in refused(model, "inner.1@linear", x)


def test_hooks_of_others_are_not_the_layers_own_work():
    model, x = seeded(Busy), noise(4, 3)
    for layer in model.modules():
        layer.register_forward_pre_hook(lambda module, args: (args[0].add(1).sub(1),))
        layer.register_forward_hook(lambda module, args, output: output.mul(1).add(0))
    found = refused(model, ".@nothing", x)
    assert found.endswith("what ran there: add:0, sub:0, relu, add:1, mul, sub:1, setitem, chunk, sigmoid")


class Residual(nn.Module):
    """ResNet's blocks, as torchvision has them, with their sums computed by hand."""

    def __init__(self, build) -> None:
        super().__init__()
        self.model = seeded(build)

    def sums(self, x: Tensor) -> dict[str, Tensor]:
        model = out_of_place(self.model)
        x = model.maxpool(F.relu(model.bn1(model.conv1(x))))
        sums = {}
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for number, block in enumerate(getattr(model, stage)):
                y = F.relu(block.bn1(block.conv1(x)))
                y = block.bn2(block.conv2(y))
                if hasattr(block, "conv3"):
                    y = block.bn3(block.conv3(F.relu(y)))
                y = y + (x if block.downsample is None else block.downsample(x))
                sums[f"{stage}.{number}@add"] = y
                x = F.relu(y)
        return sums


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_residual_sums_of_resnet(name):
    from torchvision import models

    residual, x = Residual(lambda: getattr(models, name)(num_classes=3)), noise(2, 3, 33, 40)
    with torch.no_grad():
        expected = residual.sums(x)
    found = run(residual.model, "layer*.*@add", x)
    assert list(found) == list(expected)
    for tap, value in expected.items():
        assert torch.equal(found[tap], value), tap


def test_functional_relu_of_densenet():
    from torchvision.models import DenseNet

    model = seeded(lambda: DenseNet(growth_rate=4, block_config=(1, 2), num_init_features=8, num_classes=3))
    x = noise(2, 3, 32, 40)
    with torch.no_grad():
        features = out_of_place(model).features(x)
        found = run(model, [".@relu", "<.@relu", ".@adaptive_avg_pool2d", "features.norm5"], x)
        assert torch.equal(found["<.@relu"], features)
        assert torch.equal(found["features.norm5"], features)
        assert torch.equal(found[".@relu"], F.relu(features))
        assert torch.equal(found[".@adaptive_avg_pool2d"], F.adaptive_avg_pool2d(F.relu(features), (1, 1)))


def test_silu_of_efficientnet_and_the_scale_of_its_attention():
    from torchvision.models import efficientnet_b0

    model, x = seeded(lambda: efficientnet_b0(num_classes=3)), noise(2, 3, 33, 40)
    with torch.no_grad():
        twin = out_of_place(model)
        stem = twin.features[0][1](twin.features[0][0](x))
        gated = twin.features[1][0].block[0](F.silu(stem))
        scale = twin.features[1][0].block[1]._scale(gated)
        found = run(model, ["features.0.2@silu", "<features.0.2@silu", "features.1.0.block.1@mul"], x)
    assert torch.equal(found["<features.0.2@silu"], stem)
    assert torch.equal(found["features.0.2@silu"], F.silu(stem))
    assert torch.equal(found["features.1.0.block.1@mul"], scale * gated)


def test_layer_scale_and_sum_of_convnext():
    from torchvision.models import convnext_tiny

    model, x = seeded(lambda: convnext_tiny(num_classes=3)), noise(2, 3, 32, 32)
    with torch.no_grad():
        stem, block = model.features[0](x), model.features[1][0]
        scaled = block.layer_scale * block.block(stem)
        found = run(model, ["features.1.0@mul", "features.1.0@add"], x)
    assert torch.equal(found["features.1.0@mul"], scaled)
    assert torch.equal(found["features.1.0@add"], scaled + stem)


@pytest.mark.parametrize("fused", [True, False])
def test_query_key_and_value_of_timm_vit(fused):
    import timm

    model = seeded(lambda: timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2))
    x = noise(2, 3, 32, 32)
    for block in model.blocks:
        block.attn.fused_attn = fused
    with torch.no_grad():
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        normed = model.blocks[0].norm1(tokens)
        attention = model.blocks[0].attn
        qkv = attention.qkv(normed).reshape(2, 5, 3, 3, 64).permute(2, 0, 3, 1, 4)
        taps = [f"blocks.0.attn@unbind[{part}]" for part in range(3)]
        found = run(model, [*taps, "blocks.0@add:0", *([] if fused else ["blocks.0.attn@softmax"])], x)
        for part, tap in enumerate(taps):
            assert torch.equal(found[tap], qkv[part])
        assert torch.equal(found["blocks.0@add:0"], tokens + attention(normed))
        if not fused:
            scores = (qkv[0] * attention.scale) @ qkv[1].transpose(-2, -1)
            assert torch.equal(found["blocks.0.attn@softmax"], scores.softmax(-1))


def test_query_key_and_value_of_swin():
    import timm

    model = seeded(
        lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, img_size=56, depths=(1, 1, 1, 1))
    )
    x = noise(2, 3, 56, 56)
    with torch.no_grad():
        block = model.layers[0].blocks[0]
        maps = block.norm1(model.patch_embed(x))
        windows = maps.view(2, 2, 7, 2, 7, 96).permute(0, 1, 3, 2, 4, 5).reshape(-1, 49, 96)
        qkv = block.attn.qkv(windows).reshape(8, 49, 3, 3, 32).permute(2, 0, 3, 1, 4)
        found = run(model, ["layers.0.blocks.0.attn@unbind[1]", "layers.0.blocks.0@add:0"], x)
    assert torch.equal(found["layers.0.blocks.0.attn@unbind[1]"], qkv[1])


# Calls and indices


class Recurring(nn.Module):
    """Runs one block three times, which adds twice each time."""

    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 1) + x

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(self.block(x)))


def test_calls_and_indices_of_a_layer_that_runs_several_times():
    model, x = Recurring(), torch.ones(1, 1)
    taps = ["block:0@add:0", "block:2@add:1", "block:last@add:0", "<block:1@add:1[1]"]
    assert [v.item() for v in run(model, taps, x).values()] == [2, 15, 8, 3]
    found = run(model, "block:all@add:1", x)
    assert {name: value.item() for name, value in found.items()} == {
        "block:0@add:1": 3,
        "block:1@add:1": 7,
        "block:2@add:1": 15,
    }
    named = run(model, {"sums": "block:all@add:1"}, x)
    assert list(named) == ["sums:0", "sums:1", "sums:2"]
    assert "runs 3 times in one forward; choose block:0@add:0," in refused(model, "block@add:0", x)
    assert "its calls are 0 to 2" in refused(model, "block:3@add:0", x)
    assert "'add' runs 2 times in layer 'block' in its call 1: its indices are 0 to 1" in refused(
        model, "block:1@add:2", x
    )
    assert "choose block:0@add:0, block:0@add:1 (what ran there: add:0, add:1)" in refused(model, "block:0@add", x)


def test_globs_take_the_layers_that_run_the_operation():
    model, x = seeded(Busy), noise(4, 3)
    assert list(run(model, "**@linear", x)) == ["one@linear", "inner.0@linear", "inner.1.0@linear"]
    assert "'**@conv2d': 'conv2d' runs in none of these layers: one, act" in refused(model, "**@conv2d", x)
    long = run(model, [{"layer": r"re:inner\..*", "op": "linear"}], x)
    assert len(long) == 2
    twice = refused(nn.Sequential(Recurring.Block()), "*@add", torch.ones(1, 1))
    assert "for all layers that match, *@add:0" in twice


class Recursive(nn.Module):
    """Calls itself on each half, between two additions."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + len(x)
        if len(x) > 1:
            y = torch.cat([self(y[:1]), self(y[1:])])
        return y * 2


def test_calls_of_a_layer_that_calls_itself_are_counted_as_they_begin():
    model = nn.Sequential(Recursive())
    found = run(model, ["0:0@add", "0:1@mul", "0:2@add", "0:0@mul"], torch.tensor([[1.0], [5.0]]))
    assert [value.flatten().tolist() for value in found.values()] == [[3, 7], [8], [8], [16, 32]]


def test_shared_layer_and_its_alias():
    model = nn.Module()
    model.forward = lambda x: model.b(x)  # type: ignore[method-assign]
    model.a = model.b = Recurring.Block()
    assert run(model, ["a@add:0", "b@add:1"], torch.ones(1, 1))["a@add:0"].item() == 2


# Differences between forwards


class Changing(nn.Module):
    """Runs other operations for inputs that are not zero."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        changed = bool(x.any())
        if changed and self.how == "moved":
            x = x + 1
        if not (changed and self.how == "gone"):
            x = x + 2
        if changed and self.how == "more":
            x = x + 3
        return x.relu()


@pytest.mark.parametrize(("how", "ran"), [("moved", "add:0, add:1"), ("gone", "relu"), ("more", "add:0, add:1")])
@pytest.mark.parametrize("early_stop", [True, False])
def test_operation_that_moves_goes_or_repeats_in_a_later_forward(how, ran, early_stop):
    with torch.no_grad(), TappedModel(Changing(how), [".@add", ".@relu"], early_stop=early_stop) as taps:
        taps.run(torch.zeros(2, 3))
        with pytest.raises(layertap.TapError) as error:
            taps.run(torch.ones(2, 3))
    said = str(error.value)
    assert said.startswith("taps[0]: layer '.' ran other operations in this forward than in the first one")
    assert ran in said
    assert said.endswith("in the first one: any, add, relu")


# Nothing stays on


class Failing(nn.Module):
    def __init__(self, error: type[BaseException] = ValueError) -> None:
        super().__init__()
        self.inner = nn.Sequential(Recurring.Block(), nn.Identity())
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x + 1)
        if x.any():
            raise self.error("no")
        return y * 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("through", ["run", "call"])
def test_exception_in_a_tapped_layer_leaves_nothing_on(error, through):
    model = nn.Sequential(Failing(error))
    with layertap.tap(model, ["0@add", "0.inner.0@add:0"]) as taps:
        with pytest.raises(error):
            (taps.run if through == "run" else model)(torch.ones(1))
        if error is ValueError or through == "run":
            assert not modes()
        counted = torch.ones(1) + torch.ones(1)
        assert counted.item() == 2
        assert taps.run(torch.zeros(1))["0@add"].item() == 1
    assert not modes()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_exception_that_the_model_catches_leaves_the_rest_right():
    class Catching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.failing = Failing()

        def forward(self, x: Tensor) -> Tensor:
            try:
                x = self.failing(x)
            except ValueError:
                x = x - 5
            return x * 3

    found = run(Catching(), [".@sub", ".@mul", "failing@add"], torch.ones(1))
    assert [value.item() for value in found.values()] == [-4, -12, 2]


def test_operation_that_raises_does_not_count():
    class Trying(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            try:
                x = torch.add(x, torch.ones(7))
            except RuntimeError:
                x = torch.add(x, 1)
            return x

    found = run(Trying(), [".@add", "<.@add"], torch.zeros(3))
    assert found[".@add"].tolist() == [1, 1, 1]
    assert found["<.@add"].tolist() == [0, 0, 0]


def test_blocks_within_blocks_see_the_model_and_not_each_other():
    model, x = seeded(Busy), noise(4, 3)
    with torch.no_grad():
        expected = busy_by_hand(model, x)
        with layertap.tap(model, [".@add:0", ".@mul"]) as outer, layertap.tap(model, [".@mul", ".@sub:1"]) as inner:
            assert torch.equal(inner.run(x)[".@sub:1"], expected[".@sub:1"])
            assert not modes()
            inner.run(x)
            assert not modes()
            found = outer.run(x)
            model(x)
            assert torch.equal(outer[".@mul"], expected[".@mul"])
            assert torch.equal(inner[".@mul"], expected[".@mul"])
        assert torch.equal(found[".@add:0"], expected[".@add:0"])
    assert not modes()


def test_forwards_in_other_threads_are_separate():
    model, x = seeded(Busy), noise(4, 3)
    with torch.no_grad():
        expected = busy_by_hand(model, x)[".@add:0"]
    seen = []

    def elsewhere() -> None:
        with torch.no_grad():
            model(x + 1)
            seen.append(list(modes()))
            with layertap.tap(model, ".@mul") as mine:
                seen.append(mine.run(x)[".@mul"])

    with torch.no_grad(), layertap.tap(model, ".@add:0") as taps:
        model(x)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert torch.equal(taps[".@add:0"], expected)
    assert seen[0] == []


def test_interrupt_in_one_thread_leaves_another_ones_forward_right():
    model = nn.Sequential(Failing(KeyboardInterrupt))
    found = []
    with layertap.tap(model, "0@mul") as taps:
        with pytest.raises(KeyboardInterrupt):
            model(torch.ones(1))
        thread = threading.Thread(target=lambda: found.append(taps.run(torch.zeros(1))["0@mul"].item()))
        thread.start()
        thread.join()
        assert (torch.ones(1) + 1).item() == 2
    assert found == [6]
    assert not modes()


def test_models_own_function_modes_keep_their_order():
    class OnDevice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(Recurring.Block())

        def forward(self, x: Tensor) -> Tensor:
            with torch.device("meta"), torch.overrides.BaseTorchFunctionMode():
                shape = self.block(torch.ones(2, 3)) + 1
                assert len(modes()) >= 2
            assert shape.is_meta
            return self.block(x) - 1

    assert run(OnDevice(), [".@sub"], torch.ones(1))[".@sub"].item() == 2


def test_tapped_operations_keep_the_gradient_if_asked():
    model, x = seeded(Busy), noise(4, 3)
    with layertap.tap(model, [".@add:0", ".@mul"], detach=False) as taps:
        model(x)
    (gradient,) = torch.autograd.grad(taps[".@mul"].sum(), model.one.weight)
    assert gradient.abs().sum() > 0
    assert taps[".@add:0"].requires_grad


def test_training_is_the_same_with_a_tap():
    def trained(tapped: bool) -> Tensor:
        model, x = seeded(Busy).train(), noise(4, 3)
        if tapped:
            with layertap.tap(model, [".@add:0", "<.@mul", "inner.*@linear"]):
                model(x).sum().backward()
        else:
            model(x).sum().backward()
        return model.one.weight.grad

    assert torch.equal(trained(True), trained(False))


def test_operation_inside_vmap_is_refused():
    class Mapping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(lambda row: row + 1)(x)

    assert "inside torch.vmap" in refused(Mapping(), ".@add", torch.ones(2, 3))


# Models of others


def small_models():
    import timm

    torchvisions = ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "mnasnet0_5", "alexnet"]
    return [*(f"timm/{name}" for name in timm.list_models("test_*")), *(f"torchvision/{n}" for n in torchvisions)]


@pytest.mark.parametrize("name", small_models())
def test_forward_with_operations_tapped_everywhere_has_the_same_bits(name):
    import timm
    from torchvision import models

    kind, _, name = name.partition("/")
    model = seeded(lambda: timm.create_model(name) if kind == "timm" else models.get_model(name))
    size = model.default_cfg["input_size"][-1] if kind == "timm" else 64
    x = noise(2, 3, size, size)
    with torch.no_grad():
        plain = model(x)
        with layertap.tap(model, [".@nothing", "**@nothing"]):
            assert torch.equal(model(x), plain)
    assert not modes()


@pytest.mark.parametrize("norm_first", [True, False])
def test_sums_of_torchs_transformer_block_without_its_fast_path(norm_first):
    block = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first))
    model, x = nn.TransformerEncoder(block, 1, enable_nested_tensor=False).eval(), noise(2, 5, 8)
    (block,) = model.layers
    with torch.no_grad():
        given = block.norm1(x) if norm_first else x
        attended = x + block.self_attn(given, given, given, need_weights=False)[0]
        between = attended if norm_first else block.norm1(attended)
        hidden = F.relu(block.linear1(block.norm2(between) if norm_first else between))
        found = run(model, ["layers.0@add:0", "layers.0@add:1", "layers.0@relu"], x)
        plain = model(x)
        with layertap.tap(model, ["layers.0@add:0"]):
            assert torch.allclose(model(x), plain, atol=1e-6)
    for tap, value in {
        "layers.0@add:0": attended,
        "layers.0@relu": hidden,
        "layers.0@add:1": between + block.linear2(hidden),
    }.items():
        assert torch.allclose(found[tap], value, atol=1e-6), tap


def test_operations_of_hugging_faces_vit():
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = seeded(lambda: ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4)))
    x = noise(2, 3, 8, 8)
    (path,) = [path for path, layer in model.named_modules() if type(layer).__name__ == "ViTLayer"]
    block = model.get_submodule(path)
    with torch.no_grad():
        tokens = model.embeddings(x)
        expected = block.attention(block.layernorm_before(tokens))
        found = run(model, [f"<{path}@add:0", f"{path}@add:0"], x)
    attended = expected[0] if isinstance(expected, tuple) else expected
    assert torch.equal(found[f"{path}@add:0"], attended + tokens)


def test_layertap_is_right_in_every_case_of_the_comparison():
    from tests.comparison.operations import cases, word

    assert {case.title: word(case, "layertap") for case in cases()} == dict.fromkeys(
        (case.title for case in cases()), "right"
    )
