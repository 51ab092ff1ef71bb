from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.data.open_qa import Question, read_questions, without_mark
from ance_fast.errors import DataError

# What csv.writer puts on one line, which is what such files hold.
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(texts, st.lists(texts, max_size=3)), max_size=4))
def test_questions_and_answers_come_back_as_csv_writes_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, list[str]]]
) -> None:
    file = tmp_path_factory.mktemp("qa") / "nq-test.qa.csv"
    with open(file, "w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, delimiter="\t", lineterminator="\n")
        writer.writerow(("first", "['x']"))  # a byte order mark would be dropped from the first line
        writer.writerows((text, repr(answers)) for text, answers in rows)
    found = list(read_questions(file))[1:]
    assert [(question.text, question.answers) for question in found] == rows
    assert [question.id for question in found] == [str(number + 1) for number in range(len(rows))]


def test_answers_are_read_but_never_run(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text(f"who?\t[open({str(tmp_path / 'made')!r}, 'w').name]\n")
    with pytest.raises(DataError, match=r"q\.csv:1: the answers .* are no Python list of strings"):
        list(read_questions(file))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("who?", "expected `question <tab>"),
        ("who?\t['a'", "are no Python list"),
        ("who?\t'a'", "must be a list of strings"),
        ("who?\t[1]", "must be a list of strings, not of int"),
        ("who?\t[0x1" + "0" * 5000 + "]", "must be a list of strings, not of int"),
        ("who?\t{[]: 1}", "are no Python list"),
        ("who?\t" + "[" * 3000, "are no Python list"),
    ],
)
def test_malformed_answers_are_refused_with_file_and_line(tmp_path: Path, line: str, expected: str) -> None:
    file = tmp_path / "q.csv"
    file.write_text(f"fine\t['(a|b)*']\n{line}\n")
    with pytest.raises(DataError, match=r"q\.csv:2: .*" + expected):
        list(read_questions(file))


def test_json_questions_of_dpr_kilt_and_others(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"question": "q", "answers": ["a"]}, {"question": "r?", "answers": []}]))
    assert list(read_questions(file)) == [Question(1, "0", "q", ["a"]), Question(1, "1", "r?", [])]
    kilt = tmp_path / "k.jsonl"
    output = [{"answer": "a"}, {"provenance": []}, {"answer": "b"}, {"answer": "a"}]
    kilt.write_text(json.dumps({"id": "x", "input": "q", "output": output}) + '\n{"id": 3, "query": "r"}\n')
    assert list(read_questions(kilt)) == [Question(1, "x", "q", ["a", "b"]), Question(2, "3", "r", [])]
    for line, expected in {
        '{"answers": []}': "k.jsonl:1: no string `question`",
        '{"question": "q", "id": ""}': "k.jsonl:1: `id` must be",
        '{"question": "q", "answers": "a"}': "k.jsonl:1: the answers must be a list of strings",
        '{"question": "q", "id": 1}\n{"question": "r", "id": "1"}': "k.jsonl:2: question '1' again, first at .*:1",
        '[{"question": "q", "id": 1}, {"question": "r", "id": 1}]': "k.jsonl:1: question '1' again, first at .*:1",
    }.items():
        kilt.write_text(line + "\n")
        with pytest.raises(DataError, match=expected):
            list(read_questions(kilt))


def test_one_question_mark_goes() -> None:
    assert [without_mark(text) for text in ("who?", "who??", "who", "", "?", "who? ")] == [
        "who", "who?", "who", "", "", "who? "
    ]  # fmt: skip
