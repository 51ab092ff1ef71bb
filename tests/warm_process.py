"""Programs in processes forked from a warm one: it has imported what takes seconds to import, and computed nothing.

`WarmProcess.run` does what `subprocess.run` does with Python programs. Run as a program, this file is the warm process:
each line of its input asks for one program, each line of its output is how that one ended.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

PRELOADED = (
    "ance_fast.cli.commands.train",
    "ance_fast.cli.commands.tokenize",
    "ance_fast.cli.demo.report",
    "ance_fast.data",
    "ance_fast.encoding",
    "ance_fast.evaluation",
    "ance_fast.index",
    "ance_fast.mining",
    "ance_fast.models",
    "ance_fast.models.checkpoint_formats",
    "ance_fast.training.trainer",
    "bm25s",
    "datasets",
    "faiss",
    "ir_measures",
    "pandas",
    "torch.utils.tensorboard",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.roberta.modeling_roberta",
)
# A pipe takes this much without a reader.
PIPE_BYTES = 65536


class WarmProcess:
    """Starts at the first `run`, on one thread; `close` ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, *arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """What `python *arguments` did: ("-m", module, ...) or (script, ...), with `stdin` from a pipe."""
        program = [str(argument) for argument in arguments]
        with tempfile.TemporaryDirectory() as folder:
            asked = {"program": program, "stdin": stdin, "folder": folder, "cwd": os.getcwd()}
            status = self._ask(asked)
            written = [Path(folder, name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(program, status, *written)

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(30)

    def _ask(self, asked: dict[str, Any]) -> int:
        if self._process is None:
            # What the command line sets before it imports transformers.
            quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            environment = {**os.environ, **quiet, "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())
        except BaseException:
            # A test that timed out, for one: the answer must not be taken for that of the next program.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            raise


def _serve() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    # A fork has none of the other threads; jemalloc (in pyarrow) knows of forks and does without its own.
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    others = [name for name in threads if not name.startswith("jemalloc")][1:]
    assert not others, f"importing has started the threads {others}"
    gc.freeze()  # or every program would walk through all of that to find garbage
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_carried_out(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)  # what some libraries have to say of their ends is about them


def _carried_out(asked: dict[str, Any]) -> int:
    """The exit status of the program, in this process."""
    _redirect(asked["stdin"], Path(asked["folder"]))
    os.chdir(asked["cwd"])
    flag, *arguments = asked["program"]
    try:
        if flag == "-m":
            module, *arguments = arguments
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.argv = [flag, *arguments]
            runpy.run_path(flag, run_name="__main__")
        status = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _redirect(stdin: str | None, folder: Path) -> None:
    content = (stdin or "").encode()
    assert len(content) <= PIPE_BYTES
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    os.dup2(reader, 0)
    sys.stdin = os.fdopen(os.dup(0), encoding="utf-8")
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)


if __name__ == "__main__":
    _serve()
