"""ance-fast report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ance_fast.cli.inputs import refuse_missing_folder
from ance_fast.cli.output import print_json


def report(
    run: Annotated[Path, typer.Argument(help="Run folder of ance-fast train; the run may be going on or killed.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Write RUN/report.html: loss, dev metrics, age and hardness of negatives, and where the time went, as pictures.

    Example: ance-fast report run
    """
    refuse_missing_folder(run)
    from ance_fast.training.report import write_report

    path = write_report(run)
    if json:
        print_json({"report": str(path)})
    else:
        typer.echo(path)
