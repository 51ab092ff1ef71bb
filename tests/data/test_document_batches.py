from __future__ import annotations

import pytest

from ance_fast.data.document_batches import SCHEMA, encode_rows, from_arrow, to_arrow
from ance_fast.data.records import Document
from ance_fast.errors import DataError

DOCUMENTS = [Document("a", "one", "T"), Document("b", ""), Document("ü", "three 東京 \0")]


def test_documents_come_back_from_arrow_whatever_the_step() -> None:
    batch = to_arrow(DOCUMENTS)
    assert batch.schema == SCHEMA
    for rows in (1, 2, 1024):
        assert list(from_arrow([batch, batch.slice(1)], rows)) == [*DOCUMENTS, *DOCUMENTS[1:]]


def test_rows_that_differ_in_where_a_field_ends_differ_in_their_bytes() -> None:
    rows = [[Document("ab", "c", "d")], [Document("a", "bc", "d")], [Document("ab", "dc", "")], [Document("ab", "c")]]
    assert len({encode_rows(one) for one in rows}) == 4
    assert encode_rows(rows[0] + rows[1]) == encode_rows(rows[0]) + encode_rows(rows[1])


def test_half_a_surrogate_pair_is_refused_by_id() -> None:
    with pytest.raises(DataError, match="document 'd': half of a surrogate pair at character 2"):
        encode_rows([Document("d", "ab\ud83d")])
