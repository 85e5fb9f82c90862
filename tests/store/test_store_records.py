"""Records: trusted only when whole, of this work, and with their outputs there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfss_core.errors import UnsafePathError
from rfss_core.store.files import Files
from rfss_core.store.records import Record, Records

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.builds(
    Record,
    stage=st.just("embed"),
    chunk=st.text(),
    key=st.text(),
    input_digest=st.text(),
    outputs=st.dictionaries(st.text(), st.text(), max_size=3),
    status=st.sampled_from(["done", "quarantined"]),
    reason=st.none() | st.text(),
    message=st.text(),
    seconds=st.dictionaries(st.sampled_from(["read", "compute", "write"]), st.floats(0, 1e6)),
    detail=st.dictionaries(st.text(), JSON, max_size=3),
)


@given(RECORDS)
def test_records_round_trip(record: Record) -> None:
    assert Record.from_bytes(record.to_bytes()) == record


def test_any_flipped_or_missing_byte_unmakes_a_record() -> None:
    record = Record("embed", "c1", "k", "in", {"a": "1"}, seconds={"read": 0.5}, detail={"n": [1, 2]})
    data = record.to_bytes()
    for position in range(len(data)):
        assert Record.from_bytes(data[:position]) is None
        for bit in range(8):
            torn = bytearray(data)
            torn[position] ^= 1 << bit
            # White space may change into other white space: then the record is still the same.
            assert Record.from_bytes(bytes(torn)) in (None, record)
    for other in (b"", b"null", b"[]", b"{}", b'{"digest": 1}', b"\xff"):
        assert Record.from_bytes(other) is None


def test_trusted_compares_input_place_and_outputs(tmp_path: Path) -> None:
    files = Files(tmp_path)
    records = Records(files, "embed", "key")
    files.write_bytes("stages/x", b"1")
    record = Record("embed", "c1", "key", "in", {"stages/x": "1"})
    assert records.trusted("c1", "in") is None
    records.write(record)
    assert records.trusted("c1", "in") == record
    assert records.trusted("c1", "other") is None
    assert Records(files, "embed", "key2").trusted("c1", "in") is None
    # A record that was copied to where it does not belong vouches for nothing.
    files.write_bytes("records/embed/key/c2.json", record.to_bytes())
    assert records.trusted("c2", "in") is None
    assert sorted(records.all()) == ["c1"]
    files.remove("stages/x")
    assert records.trusted("c1", "in") is None
    records.remove("c1")
    records.remove("c1")
    assert records.all() == {}


def test_all_lists_each_sound_record(root_url: str) -> None:
    records = Records(Files(root_url), "embed", "key")
    expected = {f"c{n}": Record("embed", f"c{n}", "key", f"in{n}") for n in range(5)}
    for record in expected.values():
        records.write(record)
    records.files.write_bytes(records.path("torn"), b"{")
    assert records.all() == expected
    assert list(records.all()) == sorted(expected)


def test_records_of_another_stage_are_refused(tmp_path: Path) -> None:
    records = Records(Files(tmp_path), "embed", "key")
    with pytest.raises(ValueError, match="does not belong"):
        records.write(Record("segment", "c", "key", "in"))
    with pytest.raises(UnsafePathError):
        records.write(dataclasses.replace(Record("embed", "../c", "key", "in")))
    with pytest.raises(UnsafePathError):
        Records(Files(tmp_path), "..", "key")
