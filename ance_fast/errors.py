"""Exceptions whose message says what is wrong, where, and what to do.

The command line prints them as one line and exits with status 1; library users catch `AnceFastError`.
"""

from __future__ import annotations


class AnceFastError(Exception):
    """Base of every error this package raises on purpose."""


class DataError(AnceFastError, ValueError):
    """Malformed input text: the message starts with `file:line:`."""


class ArtifactError(AnceFastError):
    """A directory of results is missing, incomplete, damaged, or belongs to something else."""


class ConfigError(AnceFastError, ValueError):
    """Settings that contradict each other or cannot be satisfied."""


class WorkerError(AnceFastError):
    """The process that refreshes negatives beside a run cannot do its work."""


class MissingDependencyError(AnceFastError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""
