"""Documents from records with named fields: JSON objects, rows of Parquet files and of `datasets`.

Formats name their fields differently (BEIR `_id`, Tevatron `docid`, Pyserini `id` and `contents`, MS MARCO v2 `pid` and
`passage`), so the first record decides which of the usual names are meant, and all others must have the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ance_fast.data.records import Document
from ance_fast.errors import DataError

# In order of preference: MS MARCO v2 passages have both `pid` and the `docid` of the page they come from.
ID_NAMES = ("_id", "id", "pid", "docid", "doc_id", "docno", "passage_id")
TEXT_NAMES = ("text", "contents", "passage", "body", "content")
TITLE_NAMES = ("title",)


class Fields(NamedTuple):
    """The names of a document's fields; `title` is None where there is none."""

    id: str
    text: str
    title: str | None


class FieldNames(NamedTuple):
    """What the user says about names: None leaves it to the usual ones."""

    id: str | None = None
    text: str | None = None
    title: str | None = None

    def among(self, present: Collection[str], where: str) -> Fields:
        """The fields of records that have `present`.

        Raises `DataError`, starting with `where`, if there is no id or no text among them, or not the one asked for.
        """
        title = self._one("title", self.title, TITLE_NAMES, present, where, optional=True)
        return Fields(
            id=self._one("id", self.id, ID_NAMES, present, where) or "",
            text=self._one("text", self.text, TEXT_NAMES, present, where) or "",
            title=title,
        )

    def _one(
        self,
        what: str,
        asked: str | None,
        usual: tuple[str, ...],
        present: Collection[str],
        where: str,
        optional: bool = False,
    ) -> str | None:
        if asked is not None and asked in present:
            return asked
        if asked is None:
            found = next((name for name in usual if name in present), None)
            if found is not None or optional:
                return found
        looked_for = [asked] if asked is not None else usual
        raise DataError(
            f"{where}: no {what}: none of {_names(looked_for)} among {_names(present)}; "
            f"say which it is with ?{what}=NAME"
        )


def make_document(record: Mapping[str, Any], fields: Fields, where: str) -> Document:
    """The document of one record. Raises `DataError`, starting with `where`: missing, null or of a wrong type."""
    title = "" if fields.title is None or record.get(fields.title) is None else text_field(record, fields.title, where)
    return Document(id_field(record, fields.id, where), text_field(record, fields.text, where), title)


def id_field(record: Mapping[str, Any], name: str, where: str) -> str:
    """An id: a string that is not empty, or an integer."""
    found = record.get(name)
    if isinstance(found, str) and found:
        return found
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    problem = f"no `{name}`" if name not in record else f"`{name}` must be a string that is not empty, not {found!r}"
    raise DataError(f"{where}: {problem}")


def text_field(record: Mapping[str, Any], name: str, where: str) -> str:
    """A text, which may be empty."""
    found = record.get(name)
    if isinstance(found, str):
        return found
    kind = "null" if found is None else type(found).__name__
    raise DataError(f"{where}: " + (f"no `{name}`" if name not in record else f"`{name}` must be a string, not {kind}"))


def _names(names: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "no fields at all"
