"""The Waymo Open Motion Dataset (and generated traffic): Scenario protos in TFRecord files."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data.assembly import RecordError
from data.completeness import Remarks
from data.formats.reader import Format, Item, Reading
from data.tfrecord import BrokenRecord, is_record_header, read_records
from data.womd import parse_scenario


def _read(url: str, reading: Reading, remarks: Remarks) -> Iterator[Item]:
    for index, record in enumerate(read_records(url)):
        if isinstance(record, BrokenRecord):
            yield Item(str(record.index), RecordError("record", record.reason))
            continue
        try:
            yield Item(str(index), parse_scenario(record, reading.need_future, remarks))
        except RecordError as error:
            yield Item(str(index), error)


WOMD = Format(
    name="womd",
    title="TFRecord",
    # Other formats name their files after the TFRecords that they were made of.
    names=re.compile(r"(?![.])(?!.*\.(?:json|pkl)$).*tfrecord.*", re.DOTALL),
    example="training.tfrecord-00000-of-01000",
    heads=is_record_header,
    read=_read,
    numbered=True,
    batch=1,
)
