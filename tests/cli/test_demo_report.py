"""The demo's page, from results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ance_fast.cli.demo.report import write_page


def test_the_page_has_every_row_both_pictures_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    measured = {"nDCG@10": 0.25, "RR@10": 0.5, "R@100": 0.75}
    rows = [{"name": "a <b>", **measured, "p_value": 0.0123, "seconds": None}]
    rows += [{"name": "ANCE", **measured, "p_value": None, "seconds": 12.3}]
    refreshes = [
        {"step": step, "eval_nDCG@10": 0.1 * step, "harder_than_positive": 0.2, "stale_harder_than_positive": 0.1}
        for step in (1, 2)
    ]
    results: dict[str, Any] = {"rows": rows, "queries": 1000, "steps": 5, "seed": 1, "refreshes": refreshes}
    results |= {"encoder": {"passages_per_s": 10.0, "tokens_per_s": 1e4}, "search": "search 'a & b'"}
    write_page(results, tmp_path / "report.html")
    page = ElementTree.parse(tmp_path / "report.html").getroot()
    table = [[cell.text for cell in row] for row in next(page.iter("tbody"))]
    assert table == [
        ["a <b>", "0.2500", "0.5000", "0.7500", "0.012", "-"],
        ["ANCE", "0.2500", "0.5000", "0.7500", "-", "12"],
    ]
    pictures = [title.text for title in page.iter("{http://www.w3.org/2000/svg}title")]
    assert pictures == ["Dev nDCG@10 at each refresh of ANCE", "Share of the negatives that outscore the positive"]
    assert page.findtext(".//code") == "search 'a & b'"
    assert not {"script", "link", "img"} & {element.tag for element in page.iter()}
