"""The common parts of the reducers' tests: a reducer bound to a tap, and a tap's facts about a value."""

from __future__ import annotations

from layertap import TapInfo


def info(activation, known, **about):
    """A tap with values like this one, and the axes as the core knows them."""
    dtype = str(activation.dtype).removeprefix("torch.")
    return TapInfo("tap", "features.3", "output", None, (), tuple(activation.shape[1:]), dtype, known, about)


def bound(cls, activation, known, about=None, **params):
    """A reducer with these parameters, bound to such a tap."""
    reducer = cls.of(**params)
    reducer.bind(info(activation, known, **(about or {})))
    return reducer


def reduced(cls, activation, known, about=None, **params):
    return bound(cls, activation, known, about, **params)(activation)
