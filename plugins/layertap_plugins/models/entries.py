"""Which state dict of a checkpoint a model gets: training scripts save several, each with prefixes of its own."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from layertap import WeightsError
from layertap_plugins.models import weights

if TYPE_CHECKING:
    from torch import Tensor, nn

State: TypeAlias = "Mapping[str, Tensor]"
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

# What DataParallel and torch.compile put before every key, and what a module that wraps the model often does.
WRAPPED = ("module.", "_orig_mod.")
PREFIXES = (*WRAPPED, "model.")

_DEPTH = 5
_FITS = 8
"""Most sets of weights that fit before the search ends: a user has to choose in any case."""
_MOST = 10_000
"""Most dictionaries that are searched for state dicts; a checkpoint with a long configuration has hundreds."""


class Wanted(Protocol):
    """The parameters by which a user chooses."""

    @property
    def weights_entry(self) -> str | None: ...

    @property
    def weights_prefix(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A state dict in a file, its keys without `prefix`, and how many keys do not begin with that prefix."""

    entry: str | None
    prefix: str
    state: OrderedDict[str, Tensor]
    unused: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What a model's `about` says of it; None for what a plain state dict does not have."""
        facts: dict[str, Any] = {"weights_entry": self.entry, "weights_prefix": self.prefix or None}
        return {**facts, "unused_keys": self.unused} if self.unused else facts

    def shared(self, keys: Iterable[str]) -> int:
        """How many of the keys of a model it has."""
        return sum(key in self.state for key in keys)

    def covers(self, shapes: Shapes) -> bool:
        """Whether it has every parameter of a model, in its shape, whatever else it has."""
        state = self.state
        return bool(shapes) and all(
            key in state and tuple(state[key].shape) in (shape, shape or (1,)) for key, shape in shapes.items()
        )


def found(content: Any, path: Path) -> list[tuple[str | None, State]]:
    """Every state dict in the content of a file, by the path of keys to it: None for one at the top level.

    Raises `WeightsError` where there is none.
    """
    from torch import Tensor

    listed = list(_nested(content, (), Counter(), path))
    if listed:
        return listed
    if not isinstance(content, dict):
        raise WeightsError(f"{str(path)!r} holds no state dict but a {type(content).__name__}", where=("weights",))
    key, value = next((k, v) for k, v in content.items() if not (isinstance(k, str) and isinstance(v, Tensor)))
    raise WeightsError(
        f"{str(path)!r} holds no state dict: its entry {key!r:.100} is a {type(value).__name__} (a state dict is the "
        "file itself, or a dictionary in it)",
        where=("weights",),
    )


def _nested(content: Any, keys: tuple[str, ...], seen: Counter[str], path: Path) -> Iterator[tuple[str | None, State]]:
    from torch import Tensor

    if not isinstance(content, dict) or len(keys) > _DEPTH:
        return
    seen["dictionaries"] += 1
    if seen["dictionaries"] > _MOST:
        raise WeightsError(
            f"{str(path)!r} holds more than {_MOST:,} dictionaries; save the state dict alone", where=("weights",)
        )
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        if content or not keys:
            yield ".".join(keys) or None, content
        return
    for key, value in content.items():
        if isinstance(key, str):
            yield from _nested(value, (*keys, key), seen, path)


def candidates(states: Sequence[tuple[str | None, State]], own: Shapes, wanted: Wanted, path: Path) -> list[Candidate]:
    """What the user asks for, or every state dict, whole and under every prefix of most of a model's parameters `own`.

    The whole ones come first. Raises `WeightsError` where the user asks for what the file does not have.
    """
    asked, prefix, keys = wanted.weights_entry, wanted.weights_prefix, frozenset(own)
    # An entry that only holds another one means that one.
    named = [(entry, state) for entry, state in states if asked is None or f"{entry or ''}.".startswith(f"{asked}.")]
    if not named:
        names = [entry for entry, _ in states if entry is not None]
        has = f"it has {_listed(names)}" if names else "it is one state dict; leave weights_entry out"
        near = weights.nearest(asked or "", names)
        raise WeightsError(f"{str(path)!r} has no state dict {asked!r}{near} ({has})", where=("weights_entry",))
    if prefix is None:
        made = [_stripped(entry, state, before) for entry, state in named for before in _prefixes(state, keys)]
        made = [each for each in made if not each.unused or 2 * each.shared(own) > len(own)]
        return sorted(made, key=lambda candidate: candidate.unused > 0)
    made = [_stripped(entry, state, prefix) for entry, state in named]
    made = [each for each in made if any(not key.startswith(".") for key in each.state)]
    if not made:
        heads = list(dict.fromkeys(f"{key.partition('.')[0]}." for _, state in named for key in state if "." in key))
        raise WeightsError(
            f"no keys in {str(path)!r} begin with {prefix!r}{weights.nearest(prefix, heads)} "
            f"(they begin with {_listed(heads)})",
            where=("weights_prefix",),
        )
    return made


def chosen(
    tried: Sequence[Candidate], load: Callable[[Candidate], nn.Module], own: Shapes, path: Path
) -> tuple[nn.Module, Candidate]:
    """The module that `load` gives for the one candidate that fits, and that candidate.

    `load` raises `WeightsError` for one that does not fit; it may fill the same module each time. Candidates of
    the same values are one.

    Raises `WeightsError` where none fits, and where several do.
    """
    if len(tried) == 1:
        return load(tried[0]), tried[0]
    fits: list[tuple[Candidate, State]] = []
    rivals: list[Candidate] = []
    faults: list[tuple[Candidate, WeightsError]] = []
    for candidate in tried:
        if any(candidate.covers(own) and _same(values, candidate.state, own) for _, values in fits):
            continue
        fits = [(each, {key: value.clone() for key, value in values.items()}) for each, values in fits]
        last = candidate
        try:
            module = load(candidate)
        except WeightsError as error:
            faults.append((candidate, error))
            rivals += [candidate] if candidate.covers(own) else []
            continue
        values = module.state_dict()
        if not any(_same(values, others, values) for _, others in fits):
            fits.append((candidate, values))
        if len(fits) == _FITS:
            break
    if not fits:
        raise _nearest(faults, own)
    # One with keys to spare is refused by the model, but may well be what was meant.
    rivals = [rival for rival in rivals if not _same(fits[0][1], rival.state, own)]
    if len(fits) > 1 or rivals:
        raise _several([candidate for candidate, _ in fits], rivals, path)
    taken = fits[0][0]
    return (module if taken is last else load(taken)), taken


def _prefixes(state: State, own: frozenset[str]) -> list[str]:
    """What may have to be stripped: what is before most of the model's `own` keys, and what is before every key."""
    counts: Counter[str] = Counter()
    longest = max(map(len, own), default=0)
    for key in state:
        # No part that is longer than every key of the model is looked at: a hostile key may have a million dots.
        beyond = len(key) - longest
        start = 0 if beyond <= 0 else key.find(".", beyond - 1) + 1 or -1
        while start >= 0:
            if key[start:] in own:
                counts[key[:start]] += 1
            start = key.find(".", start) + 1 or -1
    most = max(counts.values(), default=0)
    return list(dict.fromkeys([_shared(state, own), *(prefix for prefix, n in counts.items() if 2 * n >= most)]))


def _shared(state: State, own: frozenset[str]) -> str:
    """What wrappers have put before every key of `state` and a model does not have itself; several may be joined.

    Where the model's keys are not known, only what no model has itself.
    """

    def is_before_all(before: str, prefix: str) -> bool:
        return all(key.startswith(before + prefix) for key in state) and not any(key.startswith(prefix) for key in own)

    known, before = (PREFIXES if own else WRAPPED), ""
    while state and (longer := next((prefix for prefix in known if is_before_all(before, prefix)), None)):
        before += longer
    return before


def _stripped(entry: str | None, state: State, prefix: str) -> Candidate:
    """The part of `state` under `prefix`, with the versions of its modules, by which torch converts old ones."""
    kept = OrderedDict((key.removeprefix(prefix), value) for key, value in state.items() if key.startswith(prefix))
    versions = getattr(state, "_metadata", None)
    if isinstance(versions, dict):
        kept._metadata = {  # type: ignore[attr-defined]
            f"{key}.".removeprefix(prefix).removesuffix("."): value
            for key, value in versions.items()
            if f"{key}.".startswith(prefix)
        }
    return Candidate(entry, prefix, kept, len(state) - len(kept))


def _same(one: State, other: State, keys: Iterable[str]) -> bool:
    import torch

    return all(key in other and torch.equal(one[key], other[key].to(one[key].dtype)) for key in keys)


def _nearest(faults: Sequence[tuple[Candidate, WeightsError]], own: Shapes) -> WeightsError:
    """What is wrong with the candidate that has most of the model's keys, and what else was tried."""
    candidate, error = max(faults, key=lambda fault: fault[0].shared(own))
    if candidate.unused:
        error = WeightsError(
            f"{error.message}; this is without the prefix {candidate.prefix!r:.100}", where=error.where
        )
    others = list(dict.fromkeys(str(each.entry) for each, _ in faults if each.entry != candidate.entry))
    if not others:
        return error
    return WeightsError(
        f"{error.message}; this is the entry {candidate.entry!r:.100}, and no other fits ({_listed(others)})",
        where=error.where,
    )


def _several(fits: Sequence[Candidate], rivals: Sequence[Candidate], path: Path) -> WeightsError:
    entries = Counter(each.entry for each in [*fits, *rivals])

    def choice(each: Candidate) -> str:
        words = [f"model.weights_entry={_shown(str(each.entry))}"] if len(entries) > 1 else []
        words += [f"model.weights_prefix={_shown(each.prefix)}"] if entries[each.entry] > 1 else []
        if words and not each.prefix and entries[each.entry] > 1:
            return "its keys without a prefix, saved alone"
        return " ".join(words)

    count = f"at least {_FITS}" if len(fits) == _FITS else str(len(fits) + len(rivals))
    return WeightsError(
        f"{str(path)!r} holds {count} different sets of weights that fit the model; choose one: "
        f"{', or '.join([*sorted(map(choice, fits)), *map(choice, rivals)][:_FITS])}",
        where=("weights",),
    )


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(map(_shown, names[:most])) + (", ..." if len(names) > most else "")


def _shown(name: str) -> str:
    """A name as it can be typed; one that would steer a terminal, or fill it, is quoted and cut."""
    return name if name.isprintable() and len(name) <= 100 else f"{name!r:.100}"
