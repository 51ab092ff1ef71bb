"""ance-fast info"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ance_fast.cli.output import print_json, print_table


def info(json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False) -> None:
    """Versions, CPU, GPU, FAISS, and which backend each op uses and why.

    Example: ance-fast info --json
    """
    import ance_fast

    facts = ance_fast.info()
    if json:
        print_json(facts)
        return
    rows: list[tuple[str, Any]] = [("ance_fast", facts["ance_fast"]), ("python", facts["python"])]
    rows += [(name, version or "not installed") for name, version in facts["versions"].items()]
    rows += [(f"cpu {key}", value) for key, value in facts["cpu"].items()]
    rows += [("gpu", ", ".join(gpu["name"] for gpu in facts["gpu"]) or "none visible")]
    rows += [(f"extension {key}", _short(value)) for key, value in facts["extension"].items()]
    rows += [("faiss", facts["faiss"]["kind"] or "none"), ("faiss why", facts["faiss"]["why"])]
    print_table(("what", "is"), rows)
    print_table(
        ("op", "device", "backend", "why"),
        [(op, device, *choice) for op, per in facts["ops"].items() for device, choice in per.items()]
        + [("attention", device, *text.split(", ", 1)) for device, text in facts["attention"].items()],
    )


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
