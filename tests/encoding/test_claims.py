"""Claims: one holder at a time, the dead and the silent are replaced, the living are not."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from ance_fast.encoding import claims
from ance_fast.encoding.claims import Claim, holder, machine

pytestmark = pytest.mark.timeout(30)


def child_that_claims(path: Path, then: int | None) -> int:
    """A process that takes the claim and gets the signal `then` (None: stays alive); its id."""
    pid = os.fork()
    if not pid:
        try:
            assert Claim.take(path) is not None
            while True:
                time.sleep(1)
        finally:
            os._exit(1)
    while not path.exists():
        time.sleep(0.01)
    if then is not None:
        os.kill(pid, then)
    return pid


def written(path: Path, **owner: object) -> None:
    """A claim made by another host just now."""
    entries = {"host": "far", "pid": 1, "boot": "another", "pids": "other", "started": "1", "token": "t", **owner}
    path.write_text(json.dumps(entries))


def test_one_of_many_threads_gets_the_claim_and_the_next_after_its_release(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    for _ in range(5):
        taken: list[Claim | None] = []

        def take(into: list[Claim | None] = taken) -> None:
            into.append(Claim.take(path))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        mine = [claim for claim in taken if claim is not None]
        assert len(mine) == 1
        assert holder(path) == f"pid {os.getpid()} on {os.uname().nodename}"
        with mine[0]:
            assert Claim.take(path) is None
        mine[0].release()
        assert holder(path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_loses_its_claim_at_once_and_a_living_one_keeps_it(tmp_path: Path) -> None:
    for reaped in (False, True):
        pid = child_that_claims(tmp_path / "shard", None)
        assert Claim.take(tmp_path / "shard") is None
        os.kill(pid, signal.SIGKILL)
        if reaped:
            os.waitpid(pid, 0)
        else:
            while not Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].startswith(" Z"):
                time.sleep(0.01)
        claim = Claim.take(tmp_path / "shard")
        assert claim is not None
        claim.release()
        if not reaped:
            os.waitpid(pid, 0)


def test_a_process_that_is_stopped_loses_its_claim_after_the_limit_and_does_not_disturb_the_next(
    tmp_path: Path,
) -> None:
    path = tmp_path / "shard"
    pid = child_that_claims(path, signal.SIGSTOP)
    try:
        assert Claim.take(path, stale_after=60) is None
        os.utime(path, (time.time() - 61,) * 2)
        claim = Claim.take(path, stale_after=60)
        assert claim is not None
        os.utime(path, (1, 1))
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.2)
        assert path.stat().st_mtime == 1  # the other's heart beats on the file that was taken away
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    claim.release()
    assert not path.exists()


def test_a_process_id_that_was_given_to_another_process_is_not_taken_for_the_claimant(tmp_path: Path) -> None:
    written(tmp_path / "shard", **machine(), pid=os.getpid(), started="0")
    assert holder(tmp_path / "shard") is None
    assert Claim.take(tmp_path / "shard") is not None


def test_of_another_host_only_time_tells_whatever_runs_here_under_that_id(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    written(path, pid=2**22 + 1)
    assert holder(path) == f"pid {2**22 + 1} on far"
    assert Claim.take(path, stale_after=60) is None
    os.utime(path, (time.time() - 61,) * 2)
    assert Claim.take(path, stale_after=60) is not None


def test_the_clock_is_the_one_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "shard")
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert Claim.take(tmp_path / "shard", stale_after=60) is None
    monkeypatch.setattr(claims, "_now", lambda directory: (tmp_path / "shard").stat().st_mtime + 61)
    assert Claim.take(tmp_path / "shard", stale_after=60) is not None


def test_a_claim_is_touched_as_long_as_it_is_held(tmp_path: Path) -> None:
    claim = Claim.take(tmp_path / "shard", stale_after=0.6)
    assert claim is not None
    os.utime(tmp_path / "shard", (1, 1))
    deadline = time.monotonic() + 10
    while (tmp_path / "shard").stat().st_mtime == 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    claim.release()


def test_a_claim_without_content_counts_until_the_limit(tmp_path: Path) -> None:
    (tmp_path / "shard").touch()
    assert Claim.take(tmp_path / "shard", stale_after=60) is None
    os.utime(tmp_path / "shard", (1, 1))
    assert Claim.take(tmp_path / "shard", stale_after=60) is not None


def test_a_claim_that_was_renewed_while_it_was_judged_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shard"
    written(path, token="stale")
    os.utime(path, (1, 1))

    def renewed_meanwhile(point: str) -> None:
        if point == "takeover.before":
            written(path, token="new")

    monkeypatch.setattr(claims, "crash_point", renewed_meanwhile)
    assert Claim.take(path, stale_after=60) is None
    assert json.loads(path.read_text())["token"] == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_claim_that_was_taken_over_is_not_released_by_its_former_holder(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    former = Claim.take(path)
    assert former is not None
    path.unlink()
    written(path, token="successor")
    former.release()
    assert json.loads(path.read_text())["token"] == "successor"


def test_without_a_proc_file_system_only_time_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "machine", dict)
    written(tmp_path / "shard", pid=2**22 + 1)
    assert Claim.take(tmp_path / "shard", stale_after=60) is None
