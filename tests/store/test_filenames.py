"""File names of taps: the name itself where it can be, and safe, distinct and the same each time where it cannot."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from layertap.store.filenames import stems

DEVICES = ["con", "PRN", "aux", "nul", "com0", "COM1", "com9", "lpt5", "CON.weight", "aux.0.conv", "nul..", "Aux.~"]
NAMES = st.lists(
    st.text(max_size=300) | st.text("aAbB.~%:[]/\\0é", max_size=4) | st.sampled_from([*DEVICES, "index", "Index", "."]),
    unique=True,
    max_size=8,
)


@settings(deadline=None)
@given(NAMES)
@example(["\ud800", "�", "%ED%A0%80"])
@example(["a", "A", "a~", "%7E", "A~"])
@example(["x" * 199 + "é", "x" * 199 + "è", "X" * 199 + "é", "x" * 200, "x" * 201])
def test_stems_are_safe_distinct_and_the_same_each_time(names):
    found = stems(names)
    assert list(found) == names
    for stem in found.values():
        assert re.fullmatch(r"[A-Za-z0-9_%~-]([A-Za-z0-9._%~-]*[A-Za-z0-9_%~-])?", stem)
        assert len(stem) <= 220
        assert not re.fullmatch(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", stem)
        assert stem.lower() not in {"manifest", "index", "failures", "parts", "commits", "rows", "table", "lock"}
    assert len({stem.lower() for stem in found.values()}) == len(names)
    assert stems(names) == found
    # A name's file does not hang on names that come after it.
    for count in range(len(names)):
        assert stems(names[:count]) == {name: found[name] for name in names[:count]}


@settings(deadline=None)
@given(st.lists(st.from_regex(r"[a-z_][a-z0-9_]*(\.[a-z0-9_]+)*", fullmatch=True), unique=True, max_size=5))
def test_ordinary_names_stay_as_they_are(names):
    reserved = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
    ours = re.compile(r"manifest(\.json)?|index(\.csv)?|failures(\.csv)?|merge(\.tmp)?|parts|commits|rows|table|lock")
    ordinary = [n for n in names if not reserved.fullmatch(n) and not ours.fullmatch(n) and len(n) <= 200]
    assert stems(ordinary) == {name: name for name in ordinary}


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("classifier.5", "classifier.5"),
        ("layer1.0.relu", "layer1.0.relu"),
        ("Mixed_5b.branch1x1", "Mixed_5b.branch1x1"),
        ("index.5", "index.5"),
        ("tables", "tables"),
        ("layer1.0.relu:1", "layer1.0.relu%3A1"),
        ("<classifier.1", "%3Cclassifier.1"),
        ("encoder[last_hidden_state]", "encoder%5Blast_hidden_state%5D"),
        ("features.*", "features.%2A"),
        ("a/b\\c", "a%2Fb%5Cc"),
        ("100%", "100%25"),
        ("a~b", "a%7Eb"),
        ("é", "%C3%A9"),
        ("a b", "a%20b"),
        ("a\0\n", "a%00%0A"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        (".hidden", "%2Ehidden"),
        ("dropped.", "dropped%2E"),
        ("index", "index~1bc04b52"),
        ("con", None),
        ("aux.0", None),
        ("merge.tmp", None),
        ("", None),
    ],
)
def test_stem_of_a_name(name, stem):
    found = stems([name])[name]
    if stem is None:
        head, dot, rest = name.partition(".") if name.startswith("aux") else (name, "", "")
        assert re.fullmatch(re.escape(head) + "~[0-9a-f]{8}" + re.escape(dot + rest), found)
    else:
        assert found == stem


def test_names_that_differ_in_case_alone_are_told_apart():
    found = stems(["Conv", "conv", "CONV"])
    assert found["Conv"] == "Conv"
    assert re.fullmatch("conv~[0-9a-f]{8}", found["conv"])
    assert re.fullmatch("CONV~[0-9a-f]{8}", found["CONV"])
