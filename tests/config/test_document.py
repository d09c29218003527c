"""YAML as it is read: what each scalar is, what is refused, and where every fault stands."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layertap.config.document import parse_value, read_document
from layertap.errors import ConfigError


def read(tmp_path, content):
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_document(path)


def refused(tmp_path, content):
    """The message without the folder: `c.yaml:line:column: ...`."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, content)
    message = str(caught.value)
    assert caught.value.code == 2
    assert message.isprintable()
    assert len(message) < 3_000
    return message.removeprefix(f"{tmp_path}/")


def fault(action):
    """What a ConfigError of `action` says; an empty string where it raises none."""
    try:
        action()
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, word) for word in ("no", "No", "yes", "on", "off", "y", "n", "NO", "nan", "inf", "none", "None")),
        *((word, word) for word in ("12:30:45", "1_000", "0b11", "2024-01-31", "1.2.3", "-", "=", "0x", "-0x1F", "+")),
        *((word, word) for word in ("features.0", "encoder.ln[0]", "<classifier.1", "re:layer[12]", "a: b"[:1])),
        *((word, True) for word in ("true", "True", "TRUE")),
        *((word, False) for word in ("false", "False", "FALSE")),
        *((word, None) for word in ("null", "Null", "NULL", "~", "")),
        *zip(("0", "-7", "+5", "007", "0o17", "0x1F"), (0, -7, 5, 7, 15, 31), strict=True),
        *zip(
            ("1e3", "1.", ".5", "-1.5E-2", ".inf", "-.INF"), (1e3, 1.0, 0.5, -0.015, math.inf, -math.inf), strict=True
        ),
        *((f"'{word}'", word) for word in ("7", "true", "null", "", "1e3", "**.relu")),
        ("[a, 1, [true]]", ["a", 1, [True]]),
        ("{a: 1, 'b c': {d: ~}}", {"a": 1, "b c": {"d": None}}),
        ("<<", "<<"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = parse_value("- " + text if text in ("-", "") else text, "test")
    found = found[0] if text in ("-", "") else found
    assert (found, type(found)) == (value, type(value)) or text == "-"


def test_not_a_number_is_read():
    assert math.isnan(parse_value(".nan", "test"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**30), 10**30)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"], exclude_characters="\ufeff"), max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text("aé.*[]: #'\"&!", max_size=5), inner, max_size=4)
        ),
        max_leaves=20,
    )
)
def test_json_means_what_it_means_in_json(value):
    assert parse_value(json.dumps(value, ensure_ascii=False), "test") == value


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.text(st.sampled_from("ab01.:-?[]{},&*!|>'\"%@`#~=<\\ \n\t\0\u2028é\udc80"), max_size=30) | st.text(max_size=30)
)
def test_any_text_is_a_value_or_a_config_error(text):
    message = fault(lambda: parse_value(text, "test"))
    assert message.startswith("test:") or message == ""
    assert message.isprintable()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_any_file_is_a_mapping_or_a_config_error(tmp_path, content):
    message = fault(lambda: read(tmp_path, content))
    assert message.startswith(f"{tmp_path}/c.yaml:") or message == ""


def test_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    document = read(tmp_path, b"\xef\xbb\xbfsource: samples\r\nlimit: 3\r\n")
    assert document.data == {"source": "samples", "limit": 3}
    assert document.places[("limit",)] == (2, 1)


def test_places_are_those_of_keys_and_items(tmp_path):
    document = read(tmp_path, "# one\ntaps:\n  - a\n  - {layer: b,\n     name: c}\nsink: {type: npy}\n")
    assert document.places == {
        (): (2, 1),
        ("taps",): (2, 1),
        ("taps", 0): (3, 5),
        ("taps", 1): (4, 5),
        ("taps", 1, "layer"): (4, 6),
        ("taps", 1, "name"): (5, 6),
        ("sink",): (6, 1),
        ("sink", "type"): (6, 8),
    }


def test_anchors_are_data(tmp_path):
    assert read(tmp_path, "a: &x {b: 1}\nc: *x\n").data == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "c.yaml:1:1: does not hold a mapping"),
        ("# nothing\n", "c.yaml:1:1: does not hold a mapping"),
        ("- a\n", "c.yaml:1:1: does not hold a mapping"),
        ("text\n", "c.yaml:1:1: does not hold a mapping"),
        ("a: 1\nb: 2\na: 3\n", "c.yaml:3:1: duplicate key 'a' (first on line 1)"),
        ("a:\n  b: 1\n  'b': 2\n", "c.yaml:3:3: duplicate key 'b' (first on line 2)"),
        ("a: {b: 1, b: 2}\n", "c.yaml:1:11: duplicate key 'b' (first on line 1)"),
        ("a: 1\n5: 2\n", "c.yaml:2:1: a key must be a string: quote it"),
        ("true: 2\n", "c.yaml:1:1: a key must be a string: quote it"),
        ("? [a]\n: 2\n", "c.yaml:1:3: a key must be a string: quote it"),
        ("a: 1\n---\nb: 2\n", "c.yaml:2:1: expected a single document in the stream (from line 1), but found another"),
        ("a:\n\tb: 1\n", "c.yaml:2:1: while scanning for the next token, found character '\\t' that cannot start any "),
        ("a: b: c\n", "c.yaml:1:5: mapping values are not allowed here; quote text that contains `: `"),
        ("a: 1\nb: \x01\n", "c.yaml:2:4: the character U+0001 is not allowed in YAML"),
        ("a: [1\nb: 2\n", "c.yaml:2:2: while parsing a flow sequence (from line 1), expected ',' or ']', but got ':'"),
        ("a: 'b\nc: d\n", "c.yaml:3:1: while scanning a quoted scalar (from line 1), found unexpected end of stream"),
        ("a: *b\n", "c.yaml:1:4: found undefined alias 'b'"),
        ("a: &x [*x]\n", "c.yaml:1:4: holds more than 10,000 values, or is nested more than 32 deep"),
        ("%YAML 3.0\n---\na: 1\n", "c.yaml:1:1: found incompatible YAML document (version 1.* is required)"),
        ("a: 1\nb: é\n".encode("latin-1"), "c.yaml:2:4: is not UTF-8 text"),
        ("a: 1\n".encode("utf-16"), "c.yaml:1:1: is not UTF-8 text"),
        ("a: 1\n".encode("utf-16-le"), "c.yaml:1:2: the character U+0000 is not allowed in YAML"),
        ("a: 1\n".encode("utf-32"), "c.yaml:1:1: is not UTF-8 text"),
        ('"\\e[2Jboo\\nx": 1\n"\\e[2Jboo\\nx": 1\n', "c.yaml:2:1: duplicate key '\\x1b[2Jboo\\nx'"),
    ],
)
def test_faults_say_where_and_what(tmp_path, content, message):
    assert refused(tmp_path, content).startswith(message)


@pytest.mark.parametrize(
    "line", ["taps: **.relu", "taps: *.relu", "taps: [a, *.relu]", "taps: [encoder[0]]", "taps: ['a"]
)
def test_faults_beside_a_star_or_bracket_say_how_to_quote(tmp_path, line):
    message = refused(tmp_path, f"limit: 1\n{line}\n")
    assert message.startswith(("c.yaml:2:", "c.yaml:3:1"))
    assert message.endswith('; quote text that contains `*`, `[` or `]`, as in "**.relu"')


PYTHON_TAGS = ["!!python/object/apply:os.system ['x']", "!!python/name:os.system", "!!python/module:os"]
YAML_TAGS = [
    "!!str 5",
    "!!int '5'",
    "!!bool maybe",
    "!!null x",
    "!!set {a}",
    "!!binary aGk=",
    "!!map {a: 1}",
    "!!seq [1]",
]


@pytest.mark.parametrize("tag", [*PYTHON_TAGS, *YAML_TAGS, "!own 1", "! x"])
def test_tags_are_refused(tmp_path, tag):
    message = refused(tmp_path, f"a: 1\nb:\n  c: {tag}\n")
    assert message.startswith("c.yaml:3:6: the tag ")
    assert message.endswith("is not allowed: a configuration is plain data")


BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
    "many values": f"a: [{'a,' * 400_000}]",
    "many mappings": f"a: [{'a: b,' * 150_000}]",
    "deep": f"a: {'[' * 3_000}{']' * 3_000}",
    "deep and open": f"a: {'[' * 900_000}",
    "deep mappings": f"a: {'{a: ' * 3_000}1{'}' * 3_000}",
    "deep blocks": "".join(f"{' ' * depth}a:\n" for depth in range(1_000)),
    "deep items": "- " * 400_000,
    "deep keys": "? " * 400_000,
    "digits": f"a: {'9' * 5_000}",
    "hexadecimal digits": f"a: 0x{'f' * 5_000}",
    "one more digit": f"a: 1{'0' * 100}",
    "two megabytes": f"a: {'x' * 2_000_000}",
    "long key": f"{'a' * 800_000}: 1: 2",
    "long alias": f"a: *{'a' * 800_000}",
    "long tag": f"a: !{'a' * 800_000} 1",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_one_line(tmp_path, name):
    assert refused(tmp_path, BOMBS[name]).startswith("c.yaml:")


def test_file_that_is_none_is_refused(tmp_path):
    for path, reason in (
        (tmp_path / "absent.yaml", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        (Path("/dev/zero"), "is larger than 1,000,000 bytes"),
        (Path("a\0b"), "cannot be read: embedded null byte"),
    ):
        with pytest.raises(ConfigError, match=reason):
            read_document(path)
