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
    rows += [(f"extension {key}", value) for key, value in _extension(facts["extension"])]
    rows += [("faiss", facts["faiss"]["kind"] or "none"), ("faiss why", facts["faiss"]["why"])]
    print_table(("what", "is"), rows)
    print_table(
        ("op", "device", "backend", "why"),
        [(op, device, *choice) for op, per in facts["ops"].items() for device, choice in per.items()]
        + [("attention", device, *text.split(", ", 1)) for device, text in facts["attention"].items()],
    )


def _extension(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What the compiled extension was built with, and apart from that what of it this machine can use."""
    rows = [(key, _short(value)) for key, value in facts.items() if not key.startswith("cuda")]
    if facts.get("cuda"):
        rows.append(("cuda", f"built with CUDA {_cuda_version(facts['cuda_runtime_version'])}"))
        problem, count, driver = facts["cuda_error"], facts["cuda_device_count"], facts["cuda_driver_version"]
        if driver == 0:
            here = "not usable here: no NVIDIA driver"
        elif problem or not count:
            here = f"not usable here: {problem or 'no GPU is visible'} (driver for CUDA {_cuda_version(driver)})"
        else:
            here = f"usable on {count} GPU{'s' * (count > 1)} (driver for CUDA {_cuda_version(driver)})"
        rows.append(("cuda here", here))
    elif "cuda" in facts:
        rows.append(("cuda", "built without CUDA"))
    return rows


def _cuda_version(number: int) -> str:
    """13000 as 13.0, the way CUDA counts."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
