"""Head files that are not what they should be, and agreement with the safetensors library on every accept."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from polyhead.heads.format import tensorfile
from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.tensorfile import TensorData, canonical_bytes, check_schema, find_mismatches, header_size, read_header

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def pack(header: object, data: bytes = b"\0" * 32, *, text: bytes | None = None) -> bytes:
    text = json.dumps(header).encode() if text is None else text
    return len(text).to_bytes(8, "little") + text + data


def read(file: bytes) -> tensorfile.TensorFile:
    """As the server does: 16 bytes, then the header, then the check."""
    return read_header(file[: header_size(file[:16], len(file))], len(file))


def changed(name: str, **fields: object) -> bytes:
    return pack({**GOOD, name: {**GOOD[name], **fields}})


def raw_entry(entry: str) -> bytes:
    return pack(None, b"\0" * 4, text=b'{"a":' + entry.encode() + b"}")


def test_a_good_file() -> None:
    file = pack({"__metadata__": {"format": "pt"}, **GOOD})
    parsed = read(file)
    start = len(file) - 32
    assert parsed.tensors["a"] == tensorfile.TensorEntry("F32", (2, 3), start, start + 24)
    assert parsed.tensors["b"] == tensorfile.TensorEntry("BF16", (4,), start + 24, start + 32)
    assert {name: len(tensor.data) for name, tensor in parsed.data(file).items()} == {"a": 24, "b": 8}


def test_a_header_length_that_looks_like_a_pickle() -> None:
    """0x0280 bytes of header start with the magic of pickle protocol 2."""
    text = json.dumps(GOOD).encode().ljust(0x0280)
    assert list(read(pack(None, text=text)).tensors) == ["a", "b"]


DAMAGED: dict[str, tuple[bytes, str]] = {
    # H01: where the data lies
    "overlap": (changed("b", data_offsets=[16, 24]), "overlaps"),
    "alias": (pack({"a": GOOD["a"], "b": GOOD["a"]}, b"\0" * 24), "overlaps"),
    "hole": (changed("b", data_offsets=[28, 36]), "hole"),
    "hole at the start": (pack({"a": {**GOOD["a"], "data_offsets": [8, 32]}}), "hole"),
    "trailing bytes": (pack(GOOD) + b"\0", "end at byte"),
    "truncated data": (pack(GOOD)[:-1], "end at byte"),
    "no data": (pack(GOOD, b""), "end at byte"),
    "past the end": (changed("b", data_offsets=[10**14, 10**14 + 8]), "hole"),
    "backwards": (changed("b", data_offsets=[32, 24]), "cannot have"),
    "too few bytes": (changed("b", data_offsets=[24, 31]), "cannot have"),
    "one offset": (changed("b", data_offsets=[24]), "two data_offsets"),
    "three offsets": (changed("b", data_offsets=[24, 32, 32]), "two data_offsets"),
    "negative offset": (changed("b", data_offsets=[-8, 0]), "whole numbers"),
    "float offset": (changed("b", data_offsets=[24.0, 32]), "whole numbers"),
    "text offset": (changed("b", data_offsets="ab"), "two data_offsets"),
    "bool offset": (changed("b", data_offsets=[True, 9]), "two data_offsets"),
    # H02: the header itself
    "empty file": (b"", "too short"),
    "three bytes": (b"abc", "too short"),
    "only a length": ((8).to_bytes(8, "little"), "too short"),
    "length 0": ((0).to_bytes(8, "little") + b"{}", "length"),
    "length 2^63": ((1 << 63).to_bytes(8, "little") + b"{}", "longer than"),
    "length over the library's limit": ((100_000_001).to_bytes(8, "little") + b"{}", "longer than"),
    "length over our limit": ((tensorfile.MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{" + b" " * (2 << 20), "longer than"),
    "length past the end": ((1000).to_bytes(8, "little") + b"{}", "length"),
    "not UTF-8": (pack(None, text=b'{"\xff": 1}'), "UTF-8"),
    "overlong UTF-8": (pack(None, text=b'{"\xc0\xae": 1}'), "UTF-8"),
    "not JSON": (pack(None, text=b"{a: {}}"), "JSON"),
    "cut JSON": (pack(None, text=b'{"a": '), "brackets"),
    "text after JSON": (pack(None, text=json.dumps(GOOD).encode() + b"x"), "JSON"),
    "two objects": (pack(None, text=b"{}{}"), "JSON"),
    "a list": (pack(None, text=b"[[[1]]]"), "start with"),
    "leading space": (pack(None, text=b" " + json.dumps(GOOD).encode()), "start with"),
    "nested 10 000 deep": (pack(None, text=b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"), "nested"),
    "nested objects": (pack(None, text=b'{"a":' * 10_000 + b"1" + b"}" * 10_000), "nested"),
    "nested 4 deep": (raw_entry('{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}'), "nested"),
    "brackets in text": (pack(None, text=b'{"' + b"[" * 300 + b'":1}'), "name"),
    "a million open quotes": (pack(None, text=b'{"' + b'\\"' * 500_000), "brackets"),
    "no tensors": (pack({}, b""), "no tensors"),
    "only metadata": (pack({"__metadata__": {}}, b""), "no tensors"),
    # H03: shapes
    "product overflow": (changed("a", shape=[2**40, 2**40]), "cannot have"),
    "product overflow to the right size": (changed("a", shape=[2**33, 2**31, 6]), "cannot have"),
    "negative size": (changed("a", shape=[-2, -3]), "whole numbers"),
    "minus zero": (raw_entry('{"dtype":"F32","shape":[-0],"data_offsets":[0,4]}'), "whole numbers"),
    "float size": (changed("a", shape=[2.0, 3.0]), "whole numbers"),
    "exponent": (raw_entry('{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}'), "whole numbers"),
    "NaN size": (raw_entry('{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}'), "whole numbers"),
    "Infinity": (raw_entry('{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}'), "whole numbers"),
    "5000 digits": (raw_entry('{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,4]}'), "whole numbers"),
    "bool size": (raw_entry('{"dtype":"F32","shape":[true],"data_offsets":[0,4]}'), "positive sizes"),
    "null size": (raw_entry('{"dtype":"F32","shape":[null],"data_offsets":[0,4]}'), "positive sizes"),
    "rank 5": (changed("a", shape=[1, 1, 1, 2, 3]), "at most 4"),
    "rank 5000": (changed("a", shape=[1] * 5000), "at most 4"),
    "zero size": (pack({**GOOD, "c": {"dtype": "F32", "shape": [0], "data_offsets": [32, 32]}}), "positive sizes"),
    "shape is a number": (changed("a", shape=6), "positive sizes"),
    "shape is an object": (changed("a", shape={}), "brackets"),
    # H04: duplicate keys
    "same tensor twice": (raw_entry(2 * '{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":' + "1"), "duplicate"),
    "twice with another dtype": (
        raw_entry('{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}'),
        "duplicate",
    ),
    "dtype twice": (raw_entry('{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}'), "duplicate"),
    "an escaped duplicate": (raw_entry('{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"\\u0061":1'), "duplicate"),
    # H05: too many, too much
    "20 001 tensors": (pack(None, text=b'{"a":' + b"{}," * 20_003 + b"1}"), "more than 20000"),
    "big metadata": (pack({"__metadata__": {"x": "y" * 5000}, **GOOD}), "__metadata__"),
    "metadata with a number": (pack({"__metadata__": {"x": 1}, **GOOD}), "__metadata__"),
    "metadata is text": (pack({"__metadata__": "x", **GOOD}), "__metadata__"),
    "half a surrogate pair": (pack({"__metadata__": {"x": "\ud800"}, **GOOD}), "Unicode"),
    # H06: names
    **{
        f"name {name[:12]!r}": (pack({name: {**GOOD["a"]}}, b"\0" * 24), "name")
        for name in ("../x", "/abs", "", "a\0", "x" * 257, "x" * 100_000, "аttn.weight", "a b", "a\n", "a/b", "a-b")
    },
    # entries
    "extra field": (changed("a", extra=1), "exactly"),
    "missing field": (pack({"a": {"dtype": "F32", "shape": [6]}}, b"\0" * 24), "exactly"),
    "entry is null": (pack({"a": None}), "exactly"),
    "entry is a list": (pack({"a": [1]}), "exactly"),
    "unknown dtype": (changed("a", dtype="F33"), "unknown dtype"),
    "dtype in lower case": (changed("a", dtype="f32"), "unknown dtype"),
    "dtype is a number": (changed("a", dtype=32), "unknown dtype"),
    "dtype is a list": (changed("a", dtype=["F32"]), "unknown dtype"),
    # H11: other files
    "pickle": (b"\x80\x04\x95" + b"\0" * 40, "pickle"),
    "pickle 2": (b"\x80\x02}q\x00." + b"\0" * 40, "pickle"),
    "zip": (b"PK\x03\x04" + b"\0" * 40, "zip"),
    "gguf": (b"GGUF\x03" + b"\0" * 40, "GGUF"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 40, "gzip"),
    "elf": (b"\x7fELF\x02" + b"\0" * 40, "ELF"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "HDF5"),
    "a short pickle": (b"\x80\x04N.", "pickle"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(case: str) -> None:
    file, message = DAMAGED[case]
    with pytest.raises(InvalidArgument, match=message) as caught:
        read(file)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("dtype", ["I64", "F8_E4M3", "BOOL", "C64", "F64", "U8"])
def test_dtypes_that_a_head_cannot_have(dtype: str) -> None:
    """H10: a well-formed file that does not fit."""
    with pytest.raises(FailedPrecondition, match=dtype):
        read(changed("a", dtype=dtype))


@pytest.mark.parametrize("case", ["nested 10 000 deep", "nested objects", "20 001 tensors", "length over our limit", "pickle"])
def test_no_parser_runs_on_hostile_sizes(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr("polyhead.heads.format.tensorfile.json.loads", fail)
    with pytest.raises(InvalidArgument):
        read(DAMAGED[case][0])


@pytest.mark.parametrize("unit", [b"{", b'"', b'\\"', b'{"a":', b'"a":{},', b"\\", b'"\\', b"9", b" ", b"\n", b'"a\n'])
def test_the_largest_header_takes_no_time(unit: bytes) -> None:
    """A header of a million open quotes once took minutes: the search for the end of a string began anew at each of them."""
    text = (b'{"' + unit * tensorfile.MAX_HEADER_BYTES)[: tensorfile.MAX_HEADER_BYTES]
    start = time.process_time()
    with pytest.raises(InvalidArgument):
        read(pack(None, text=text))
    assert time.process_time() - start < 2.0  # about 0.1 on an idle machine; quadratic would be minutes


# ---- agreement with the library


def library_read(file: bytes) -> dict[str, dict[str, Any]]:
    return dict(safetensors.deserialize(file))  # type: ignore[no-untyped-call]


def test_the_library_accepts_the_good_file() -> None:
    """Or the agreement below would hold of nothing."""
    assert set(library_read(pack(GOOD))) == {"a", "b"}


def replace_at(file: bytes, position: int, new: bytes) -> bytes:
    position %= len(file) + 1
    return file[:position] + new + file[position + len(new) :]


TOKENS = rb'0 1 24 32 - . e [ ] { } " \ , : true F32 BF16 a b'.split()
MUTATION = st.one_of(
    st.tuples(st.just("byte"), st.integers(0, 400), st.binary(min_size=1, max_size=2)),
    st.tuples(st.just("token"), st.integers(8, 200), st.sampled_from(TOKENS)),
    st.tuples(st.just("cut"), st.integers(0, 400), st.just(b"")),
    st.tuples(st.just("delete"), st.integers(0, 400), st.just(b"")),
    st.tuples(st.just("insert"), st.integers(0, 400), st.sampled_from(TOKENS)),
    st.tuples(st.just("fix length"), st.integers(0, 1), st.just(b"")),
)


def mutate(file: bytes, mutations: list[tuple[str, int, bytes]]) -> bytes:
    for kind, position, new in mutations:
        position %= len(file) + 1
        if kind in ("byte", "token"):
            file = replace_at(file, position, new)
        elif kind == "cut":
            file = file[:position]
        elif kind == "delete":
            file = file[:position] + file[position + 1 :]
        elif kind == "insert":
            file = file[:position] + new + file[position:]
        else:  # so that other mutations reach the parser
            header = file[8:].rfind(b"}") + 1
            file = header.to_bytes(8, "little") + file[8:]
    return file


def thorough(num_examples: int) -> settings:
    return settings(max_examples=num_examples, deadline=None, suppress_health_check=list(HealthCheck))


MUTATED = given(st.lists(MUTATION, max_size=4), st.booleans())


@thorough(60)
@MUTATED
@example([], True)
def test_what_we_accept_the_library_accepts(mutations: list[tuple[str, int, bytes]], with_metadata: bool) -> None:
    assert_accepted_by_both(mutations, with_metadata)


@pytest.mark.long
@thorough(1500)
@MUTATED
def test_what_we_accept_the_library_accepts_in_many_cases(mutations: list[tuple[str, int, bytes]], with_metadata: bool) -> None:
    assert_accepted_by_both(mutations, with_metadata)


def assert_accepted_by_both(mutations: list[tuple[str, int, bytes]], with_metadata: bool) -> None:
    """H12: no error but the two, and every accept is the library's as well, with the same names, shapes and bytes."""
    file = mutate(pack({**({"__metadata__": {"format": "pt"}} if with_metadata else {}), **GOOD}), mutations)
    try:
        parsed = read(file)
    except (InvalidArgument, FailedPrecondition):
        return
    theirs = library_read(file)
    assert theirs.keys() == parsed.tensors.keys()
    for name, entry in parsed.tensors.items():
        assert theirs[name]["dtype"] == entry.dtype
        assert tuple(theirs[name]["shape"]) == entry.shape
        assert bytes(theirs[name]["data"]) == file[entry.start : entry.end]


NUMBER: st.SearchStrategy[object] = st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12, 24, 32, 2**31, 2**62, -1, 1.0, True, None, "4", []])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I64", "F4", "x", 3]),
        "shape": st.lists(NUMBER, max_size=5),
        "data_offsets": st.lists(NUMBER, min_size=1, max_size=3),
    }
)


INVENTED = given(st.dictionaries(st.sampled_from(["a", "b", "c", "../x", "", "__metadata__"]), ENTRY, max_size=3), st.integers(0, 48))


@thorough(60)
@INVENTED
def test_what_we_accept_of_invented_headers_the_library_accepts(header: dict[str, object], num_bytes: int) -> None:
    assert_accepted_header(header, num_bytes)


@pytest.mark.long
@thorough(1000)
@INVENTED
def test_what_we_accept_of_many_invented_headers_the_library_accepts(header: dict[str, object], num_bytes: int) -> None:
    assert_accepted_header(header, num_bytes)


def assert_accepted_header(header: dict[str, object], num_bytes: int) -> None:
    file = pack(header, b"\0" * num_bytes)
    try:
        parsed = read(file)
    except (InvalidArgument, FailedPrecondition):
        return
    assert library_read(file).keys() == parsed.tensors.keys()


# ---- the schema and the canonical file


def test_mismatches_are_listed() -> None:
    tensors = read(pack(GOOD)).tensors
    assert find_mismatches(tensors, {"a": (2, 3), "b": [4]}) == []
    expected = {"a": (2, 4), "c": (1,)}
    mismatches = ["missing: c [1]", "a: expected [2, 4], received [2, 3]", "not expected: b [4]"]
    assert find_mismatches(tensors, expected) == mismatches
    with pytest.raises(FailedPrecondition, match=r"a: expected \[2, 4\], received \[2, 3\]"):
        check_schema(tensors, expected)
    with pytest.raises(FailedPrecondition, match="and 97 more"):
        check_schema(tensors, {**dict.fromkeys(map(str, range(100)), (1,)), "a": (2, 3), "b": (5,), "x": (1,)})


def as_data(array: np.ndarray) -> TensorData:
    return TensorData({"float32": "F32", "float16": "F16"}[str(array.dtype)], array.shape, array.tobytes())


SHAPE = st.lists(st.integers(1, 3), max_size=4).map(tuple)
NAME = st.from_regex(r"[a-zA-Z0-9_.]{1,12}", fullmatch=True)


@settings(max_examples=12, deadline=None)
@given(st.dictionaries(NAME, st.tuples(SHAPE, st.booleans()), min_size=1, max_size=6))
def test_the_canonical_file_is_the_one_that_the_library_writes(shapes: dict[str, tuple[tuple[int, ...], bool]]) -> None:
    """A trainer that saves without metadata, and our client, get the digest that the server would compute."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(shape).astype(np.float16 if half else np.float32) for name, (shape, half) in shapes.items()}
    ours = canonical_bytes({name: as_data(array) for name, array in arrays.items()})
    assert ours == safetensors.numpy.save(arrays)
    parsed = read(ours)
    assert min(entry.start for entry in parsed.tensors.values()) % 8 == 0
    assert canonical_bytes(dict(reversed(parsed.data(ours).items()))) == ours


def test_equal_weights_have_equal_digests_whatever_wrote_them() -> None:
    file = pack({"__metadata__": {"format": "pt"}, **GOOD}, bytes(range(32)))
    other = pack(dict(reversed(GOOD.items())), bytes(range(32)))
    digests = {hashlib.sha256(canonical_bytes(read(each).data(each))).hexdigest() for each in (file, other)}
    assert len(digests) == 1
    buffer = io.BytesIO()
    assert tensorfile.write_canonical(read(file).data(file), buffer) == len(buffer.getvalue())
    assert hashlib.sha256(buffer.getvalue()).hexdigest() in digests


BAD_TENSORS: dict[str, Callable[[], dict[str, TensorData]]] = {
    "wrong size": lambda: {"a": TensorData("F32", (2,), b"1234")},
    "bad name": lambda: {"../a": TensorData("F32", (1,), b"1234")},
    "empty": dict,
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_nothing_is_written_that_would_not_be_read(case: str) -> None:
    with pytest.raises(InvalidArgument):
        canonical_bytes(BAD_TENSORS[case]())
