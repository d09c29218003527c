"""Taps belong to one thread and one asyncio task at a time; everybody else's forwards are whole and untouched."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import layertap
from layertap import TapError
from tests.models import Recorder, Repeated, chain, noise, seeded

FORWARDS = 15


def long():
    """A model whose last layer remembers that it ran."""
    return seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.ReLU(), Recorder()))


def in_threads(*functions):
    """What each function returns, all called at the same time."""
    ready = threading.Barrier(len(functions))

    def called(function):
        ready.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return [done.result(60) for done in [pool.submit(called, function) for function in functions]]


@pytest.mark.parametrize("attempt", range(20))
def test_two_threads_tap_one_module_beside_a_bystander(attempt):
    model = long()
    wholes = []

    def tapping(layer, seed):
        def run():
            for number in range(FORWARDS):
                x = noise(2 + number % 3, 3, seed=seed + number)
                with layertap.tap(model, [f"{layer}", f"<{layer}"]) as taps:
                    for _ in range(3):
                        values = taps.run(x)
                        assert torch.equal(values[layer], model[: int(layer) + 1](x))
                    model(x + 1)
                    assert torch.equal(taps[layer], model[: int(layer) + 1](x + 1))
                    assert torch.equal(taps[f"<{layer}"], model[: int(layer)](x + 1))

        return run

    def bystander():
        for number in range(FORWARDS * 4):
            x = noise(2, 3, seed=1000 + number)
            wholes.append(torch.equal(model(x), model[:4](x)))

    in_threads(tapping("0", 0), tapping("2", 500), bystander)
    assert all(wholes)
    assert len(wholes) == FORWARDS * 4
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_threads_take_turns_in_run_of_one_block():
    model = long()
    with layertap.tap(model, ["0", "2"]) as taps:

        def running(seed):
            def run():
                for number in range(FORWARDS):
                    x = noise(2, 3, seed=seed + number)
                    values = taps.run(x)
                    assert torch.equal(values["0"], model[0](x))
                    assert torch.equal(values["2"], model[:3](x))

            return run

        in_threads(running(0), running(100), running(200), lambda: [model(noise(1, 3)) for _ in range(50)])


def test_block_entered_in_one_thread_serves_run_in_another():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, "0") as taps, ThreadPoolExecutor(1) as pool:
        for number in range(3):
            assert torch.equal(pool.submit(taps.run, x + number).result()["0"], model[0](x + number))
        with pytest.raises(TapError, match=r"in use in another thread .* or use what run"):
            taps["0"]
        assert torch.equal(pool.submit(taps.__getitem__, "0").result(), model[0](x + 2))
        assert torch.equal(taps.run(x)["0"], taps["0"])
        model(x + 5)
        assert torch.equal(taps["0"], model[0](x + 5))
    assert torch.equal(ThreadPoolExecutor(1).submit(taps.__getitem__, "0").result(), model[0](x + 5))


def test_plain_forward_in_another_thread_is_not_this_ones():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, ["0", "<2"]) as taps:
        in_threads(lambda: model(x + 1))
        for name in taps:
            with pytest.raises(TapError, match=r"ran only in another thread .*, or use `taps\.run"):
                taps[name]
        model(x)
        in_threads(lambda: model(x + 2))
        assert torch.equal(taps["0"], model[0](x))
        assert torch.equal(taps["<2"], model[:2](x))


def test_layers_in_a_pool_inside_the_model_are_refused_and_not_mixed_up():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.join = nn.Linear(3, 3), nn.Linear(3, 3), nn.Tanh()

        def forward(self, x):
            with ThreadPoolExecutor(2) as pool:
                return self.join(sum(pool.map(lambda layer: layer(x), [self.left, self.right])))

    with (
        layertap.tap(seeded(Parallel), "left") as taps,
        pytest.raises(TapError, match="'left' ran only in another thread"),
    ):
        taps.run(noise(2, 3))
    with layertap.tap(seeded(Parallel), "join") as taps:
        assert taps.run(noise(2, 3))["join"].shape == (2, 3)


def test_tasks_of_one_thread_do_not_read_each_others_values():
    model = long()

    async def one(seed):
        with layertap.tap(model, "0") as taps:
            for number in range(5):
                x = noise(2, 3, seed=seed + number)
                model(x)
                await asyncio.sleep(0)
                assert torch.equal(taps["0"], model[0](x))
                assert torch.equal(taps.run(x + 1)["0"], model[0](x + 1))

    async def every():
        await asyncio.gather(*(one(seed) for seed in (0, 100, 200)))

    asyncio.run(every())


def test_tasks_inside_one_block_are_sent_to_run():
    model = long()

    async def plain(taps, x):
        model(x)
        await asyncio.sleep(0)
        return taps["0"]

    async def through_run(taps, x):
        values = taps.run(x)
        await asyncio.sleep(0)
        return torch.equal(values["0"], model[0](x))

    async def both(function):
        with layertap.tap(model, "0") as taps:
            return await asyncio.gather(*(function(taps, noise(2, 3, seed=s)) for s in (1, 2)), return_exceptions=True)

    assert all(isinstance(result, TapError) for result in asyncio.run(both(plain)))
    assert asyncio.run(both(through_run)) == [True, True]


def test_run_during_a_plain_forward_of_another_thread_is_refused():
    inside, done = threading.Event(), threading.Event()
    model = long()

    def wait(module, args):
        if threading.current_thread() is main:
            inside.set()
            assert done.wait(60)

    main = threading.current_thread()
    model[1].register_forward_pre_hook(wait)
    x = noise(2, 3)
    with layertap.tap(model, ["0", "2"]) as taps, ThreadPoolExecutor(1) as pool:

        def intruding():
            inside.wait(60)
            try:
                taps.run(x + 1)
            finally:
                done.set()

        intruder = pool.submit(intruding)
        model(x)
        with pytest.raises(TapError, match="a forward of these taps runs in another thread"):
            intruder.result(60)
        assert torch.equal(taps["2"], model[:3](x))


def test_plain_forward_during_run_of_another_thread_leaves_its_values_alone():
    inside, done = threading.Event(), threading.Event()
    model, main = long(), threading.current_thread()

    def wait(module, args):
        if threading.current_thread() is not main:
            inside.set()
            assert done.wait(60)

    model[1].register_forward_pre_hook(wait)
    x = noise(2, 3)
    with layertap.tap(model, ["0", "2"]) as taps, ThreadPoolExecutor(1) as pool:
        running = pool.submit(taps.run, x)
        assert inside.wait(60)
        assert torch.equal(model(x + 1), model[:4](x + 1))
        done.set()
        values = running.result(60)
        assert torch.equal(values["0"], model[0](x))
        assert torch.equal(values["2"], model[:3](x))
        with pytest.raises(TapError, match="in use in another thread"):
            taps["0"]


def test_run_inside_its_own_run_is_refused():
    model = long()
    with layertap.tap(model, "0") as taps:
        with pytest.raises(TapError, match="inside a run"):
            taps.run(noise(2, 3), call=taps.run)
        assert torch.equal(taps.run(noise(2, 3))["0"], model[0](noise(2, 3)))


def test_run_of_one_block_inside_the_plain_forward_of_another():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.head = chain(), nn.Tanh()
            self.taps = None

        def forward(self, x):
            values = self.taps.run(x)["0"]
            return self.head(values)

    model, x = Loss(), noise(2, 3, 8, 7)
    with layertap.tap(model.net, "0") as model.taps, layertap.tap(model, ["head", "net.0"]) as outer:
        for number in range(3):
            output = model(x + number)
            assert torch.equal(output, model.net[0](x + number).tanh())
            assert torch.equal(outer["head"], output)
            assert torch.equal(outer["net.0"], model.net[0](x + number))


def test_early_stop_of_one_block_ends_no_plain_forward_of_another():
    model, x = seeded(Repeated), noise(2, 3, 9, 7)
    with layertap.tap(model, "relu:0") as stopping, layertap.tap(model, ["wide", "relu:last"]) as plain:
        for number in range(3):
            stopping.run(x)
            whole = model(x + number)
            assert torch.equal(plain["relu:last"], whole)
            assert torch.equal(stopping["relu:0"], (x + number).relu())


def test_layers_does_not_count_the_calls_of_another_thread():
    model, x, stop = chain(), noise(2, 3, 8, 7), threading.Event()

    def bystander():
        while not stop.is_set():
            assert model(x).shape == (2, 5, 6, 5)

    def looking():
        try:
            for _ in range(20):
                assert {layer.calls for layer in layertap.layers(model, x)} == {1}
        finally:
            stop.set()

    in_threads(bystander, looking)


def test_two_extractions_share_a_module_in_training_mode():
    from PIL import Image

    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.Dropout()).train()
    images = [Image.new("RGB", (4, 4), (number, 9, 40)) for number in range(12)]

    def prepare(image):
        return torch.tensor(list(image.resize((4, 4)).tobytes()), dtype=torch.float32) / 255

    first = layertap.extract(model, images, ["2"], preprocess=prepare, batch_size=2)
    second = layertap.extract(model, images, ["2"], preprocess=prepare, batch_size=2)
    expected = [next(first).values["2"]]
    found = [next(second).values["2"]]
    expected += [batch.values["2"] for batch in first]
    found += [batch.values["2"] for batch in second]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(layer.training for layer in model.modules())
