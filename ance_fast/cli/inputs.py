"""Inputs that are not there are refused at once: what would open them takes seconds to import."""

from __future__ import annotations

from pathlib import Path

from ance_fast.artifacts import recover
from ance_fast.errors import ArtifactError, DataError


def refuse_missing_data(*specs: str | None) -> None:
    """Raise `DataError` for data whose form is not known or whose files are not there. None: not given."""
    from ance_fast.data.sources import refuse_missing

    for spec in specs:
        if spec is not None:
            refuse_missing(spec)


def refuse_missing_model(name: str | None) -> None:
    """Raise `ArtifactError` for what can only be a path and is no folder. None: not given."""
    from ance_fast.models.layouts import refuse_missing_checkpoint

    if name is not None:
        refuse_missing_checkpoint(name)


def refuse_unknown_preset(text_preset: str | None) -> None:
    """Raise `ConfigError` for rules of text that are not known. None: not given."""
    from ance_fast.data.text_rules import text_rules

    if text_preset is not None:
        text_rules(text_preset)


def refuse_missing_files(*files: str | Path) -> None:
    """Raise `DataError` for a file that is not there."""
    for file in files:
        if not Path(file).exists():
            raise DataError(f"{file}: no such file")


def refuse_missing_folder(*folders: str | Path | None) -> None:
    """Raise `ArtifactError` for a folder that is not there. None: not given."""
    for folder in folders:
        if folder is None:
            continue
        # One that a killed replacement moved away is there for whoever opens it.
        recover(Path(folder))
        if not Path(folder).is_dir():
            raise ArtifactError(f"{folder}: {'not a folder' if Path(folder).exists() else 'no such folder'}")
