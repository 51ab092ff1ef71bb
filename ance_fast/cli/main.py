"""`ance-fast`: commands put together, errors as one message, exit status 0, 1 (failed) or 2 (usage).

A new command is one file with a function, and one line below.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import typer
from rich.logging import RichHandler

from ance_fast.cli.commands.bm25 import bm25
from ance_fast.cli.commands.convert import convert
from ance_fast.cli.commands.convert_embeddings import convert_embeddings
from ance_fast.cli.commands.demo import demo
from ance_fast.cli.commands.encode import encode
from ance_fast.cli.commands.evaluate import evaluate
from ance_fast.cli.commands.index import index
from ance_fast.cli.commands.info import info
from ance_fast.cli.commands.mine import mine
from ance_fast.cli.commands.rank import rank
from ance_fast.cli.commands.recipes import recipes
from ance_fast.cli.commands.report import report
from ance_fast.cli.commands.search import search
from ance_fast.cli.commands.tokenize import tokenize
from ance_fast.cli.commands.train import train
from ance_fast.cli.recipes import RecipeCommand
from ance_fast.errors import AnceFastError, ConfigError
from ance_fast.progress import stderr_console


class _Interrupted(Exception):
    """Ctrl-C, in a form that typer does not turn into its own status."""


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt as error:
            raise _Interrupted from error

    return run


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train dense retrievers with ANCE; encode, index and search corpora.",
)
_COMMANDS = (
    demo, tokenize, encode, index, search, mine, train, recipes, report, rank, bm25, evaluate, convert,
    convert_embeddings, info,
)  # fmt: skip
for command in _COMMANDS:
    name = command.__name__.replace("_", "-")
    app.command(name=name, cls=RecipeCommand if command is train else None)(_interruptible(command))


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    quiet: bool = typer.Option(False, "--quiet", help="Only warnings and errors."),
) -> None:
    level = logging.WARNING if quiet else logging.INFO
    handler = RichHandler(console=stderr_console(), show_time=False, show_level=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("ance_fast").setLevel(level)
    if not debug:
        _silence_libraries()


def main() -> None:
    """Entry point of the `ance-fast` script."""
    debug = "--debug" in sys.argv
    try:
        _leave_at_once(app) if _one_of_several() else app()
    except _Interrupted:
        _fail("interrupted", 130)
    except (AnceFastError, OSError, MemoryError) as error:
        if debug:
            raise
        _fail(f"error: {error}", 2 if isinstance(error, ConfigError) else 1)


def _one_of_several() -> bool:
    """Whether torchrun started this process beside others."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _leave_at_once(command: Callable[[], None]) -> None:
    """Run `command` and end the process, also after an error that `main` does not know.

    A process that waits for its connections' threads may wait for ever, and as long as it is there torchrun lets the
    others wait for it.
    """
    try:
        command()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except (_Interrupted, AnceFastError, OSError, MemoryError):
        raise
    except Exception:
        traceback.print_exc()
        status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _fail(message: str, status: int) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    stderr_console().show_cursor()
    print(f"ance-fast: {message}", file=sys.stderr)
    # Not sys.exit: worker threads of tokenizers and BLAS must not keep an interrupted process alive.
    sys.stderr.flush()
    os._exit(status)


def _silence_libraries() -> None:
    """What transformers, FAISS and PyTorch say while loading is about them, not about the user's data.

    By environment variables: importing transformers takes longer than most commands that do not need it.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if _one_of_several():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    main()
