"""`report.html`: from the logs of a run, finished or not, and readable without scripts, network or eyes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ance_fast.errors import ArtifactError
from ance_fast.training.report import read_log, write_report

SVG = "{http://www.w3.org/2000/svg}"
LOG: list[dict[str, Any]] = [
    {"step": 10, "loss": 2.5, "seconds_interval": 5.0, "negatives_judged": 0.5, "false_negative_rate": 0.1},
    {"step": 10, "generation": 1.0, "eval_RR@10": 0.25, "overlap@10": 0.5, "harder_than_positive": 0.5}
    | {"stale_harder_than_positive": 0.25, "loss_fresh": 3.0, "loss_stale": 2.0, "filtered_percentage": 0.0625}
    | {"seconds_refresh": 3.0, "seconds_encode": 2.0, "seconds_mine": 0.5, "seconds_measure": 0.5},
    {"step": 20, "loss": 2.25, "seconds_interval": 9.0, "negative_age": 4.5, "negative_age_max": 9.0}
    | {"seconds_waited": 1.0, "worker_busy": 0.75},
    {"step": 20, "eval_RR@10": 0.375},
]


def make_run(folder: Path, log: list[dict[str, Any]], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {"refresh": "sync", "max_steps": 40, **settings}
    (folder / "config.json").write_text(json.dumps({"settings": settings, "data": {}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    return folder


def page_of(folder: Path) -> ElementTree.Element:
    return ElementTree.fromstring(write_report(folder).read_text(encoding="utf-8"))


def text_of(folder: Path) -> str:
    return " ".join("".join(page_of(folder).itertext()).split())


def titles(page: ElementTree.Element) -> list[str | None]:
    return [title.text for title in page.iter(f"{SVG}title")]


def test_every_measure_has_its_picture_and_its_numbers(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", LOG))
    assert titles(page) == [
        "Loss",
        "Loss on new and on old negatives",
        "Dev queries",
        "Age of negatives",
        "What lists kept",
        "Hardness",
        "False negatives",
        "Candidates left out",
        "Where the time went",
        "The worker",
    ]
    tables = {
        caption.text: [[cell.text for cell in row] for row in table.iter("tr")]
        for table in page.iter("table")
        for caption in table.iter("caption")
    }
    assert tables["Loss"] == [["step", "loss"], ["10", "2.50"], ["20", "2.25"]]
    assert tables["Loss on new and on old negatives"][1] == ["10", "3", "2"]
    assert tables["Dev queries"] == [["step", "RR@10"], ["10", "0.250"], ["20", "0.375"]]
    assert tables["Age of negatives"] == [["step", "mean", "oldest"], ["20", "4.50", "9"]]
    assert tables["Where the time went"][1:4] == [
        ["training", "10"],  # 14 seconds between the lines, 3 of them refreshing, 1 waiting
        ["refreshing, training waits", "3"],
        ["waiting for the worker", "1"],
    ]
    generations = tables["All that was measured at each generation"]
    assert dict(zip(generations[0], generations[1], strict=True))["loss_stale"] == "2"
    assert "Best RR@10: 0.3750 at step 20." in text_of(tmp_path / "run")


def test_the_page_stands_alone_and_is_made_for_screen_readers(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", LOG))
    assert page.get("lang") == "en"
    names = [element.tag.removeprefix(SVG) for element in page.iter()]
    assert not {"script", "link", "img", "iframe", "object", "use", "image"} & set(names)
    assert not [key for element in page.iter() for key in element.attrib if key in ("href", "src", "onclick")]
    assert not re.search(r"url\(|@import", (tmp_path / "run" / "report.html").read_text())
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for picture in page.iter(f"{SVG}svg"):
        assert picture.get("role") == "img"
        assert set(str(picture.get("aria-labelledby")).split()) <= set(ids)
        assert all(part.text for part in picture if part.tag in (f"{SVG}title", f"{SVG}desc"))
    levels = [int(name[1]) for name in names if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert set(levels[1:]) == {2}


def test_names_and_settings_from_outside_are_text_and_nothing_else(tmp_path: Path) -> None:
    evil = "<img onerror=alert(1)>"
    log = [{"step": 1, "generation": 1, "eval_" + evil: 0.5, "filtered_" + evil: 0.1, evil: 1}]
    page = page_of(make_run(tmp_path / evil, log, sampler=evil))
    assert evil in [heading.text for heading in page.iter("h1")]
    assert not list(page.iter("img"))


def test_a_run_that_goes_on_or_was_killed_shows_what_there_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LOG[:1])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "lo')
    assert "at step 10 of 40 when this was written" in text_of(run)
    assert titles(page_of(run))[0] == "Loss"
    (run / "metrics.jsonl").unlink()
    assert "Nothing has been measured yet" in text_of(run)
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "report.html"]


def test_a_run_is_finished_when_its_last_file_is_there_and_is_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LOG)
    (run / "index").mkdir()
    (run / "index" / "manifest.json").touch()
    assert "Training, finished" in text_of(run)
    os.utime(run / "index" / "manifest.json", (1, 1))
    assert "finished" not in text_of(run)


def test_a_long_run_is_drawn_through_means(tmp_path: Path) -> None:
    log = [{"step": step, "loss": 1.0, "negative_age_max": float(step % 50)} for step in range(1, 20_001)]
    run = make_run(tmp_path / "run", log)
    (ages,) = [table for table in page_of(run).iter("table") if table.findtext("caption") == "Age of negatives"]
    assert {row[1].text for row in list(ages.iter("tr"))[1:]} == {"49"}
    assert write_report(run).stat().st_size < 100_000


def test_a_loss_that_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": float("nan")}])
    (losses,) = [table for table in page_of(run).iter("table") if table.findtext("caption") == "Loss"]
    assert [[cell.text for cell in row] for row in losses.iter("tr")] == [["step", "loss"], ["1", "0.500"]]


def test_what_is_no_run_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nothing: no training run \(config.json: .*give the --output of a run"):
        write_report(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ArtifactError, match="no training run"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}', '{"step": "x"}', "null"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ArtifactError, match=r"metrics.jsonl:2: not a line of a run's log"):
        read_log(path)
