#!/usr/bin/env bash
# One command for a machine with a GPU: build, compute-sanitizer, op tests, benchmark suite.
#
#   OUT=DIR bash benchmarks/gpu_check.sh
#
# Every step has a limit; together they stay under nine minutes. OUT receives at most eight files: the log of each step
# and the four files of the suite. Exits with 1 when a step failed; the last lines say which.
#
# Needs python3 with torch, triton, numpy, pybind11, setuptools, cmake, ninja, nvcc, pytest, pytest-timeout, hypothesis,
# pyarrow and matplotlib. The rivals are optional: as wheels of liger-kernel, inf-cl and cut-cross-entropy in .whl/
# (pip download --no-deps -d .whl NAME) they are unpacked and used from there, as is any other wheel found there, such
# as ir_measures. Where the history does not travel, pass GIT_COMMIT=$(git rev-parse HEAD).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-bench-out/gpu}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 ANCE_FAST_STRICT=1
failed=0
summary=()

# step NAME SECONDS LOG COMMAND...: an interrupt at the limit lets the suite finish its files; ten seconds later it dies.
step() {
  local name=$1 limit=$2 log=$3 begin=$SECONDS status
  shift 3
  echo "== $name"
  timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$OUT/$log" 2>&1
  status=$?
  if [ "$status" -eq 0 ]; then
    summary+=("ok      $name, $((SECONDS - begin)) s")
  else
    failed=1
    summary+=("FAILED  $name, status $status after $((SECONDS - begin)) s, see $log")
    tail -n 25 "$OUT/$log"
  fi
}

rm -f "$OUT"/{build,sanitizer,tests,suite}.log
if compgen -G '.whl/*.whl' >/dev/null; then
  site=$(mktemp -d)
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" .whl/*.whl || exit 1
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

step build 100 build.log env ANCE_FAST_CUDA=on python3 setup.py build_ext --inplace
# Without torch's cache every tensor is an allocation of its own, whose ends memcheck knows.
step memcheck 60 sanitizer.log env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
  compute-sanitizer --tool memcheck --error-exitcode 1 --print-limit 20 python3 -m benchmarks.gpu_smoke
step racecheck 60 sanitizer.log \
  compute-sanitizer --tool racecheck --error-exitcode 1 --print-limit 20 python3 -m benchmarks.gpu_smoke
step tests 70 tests.log python3 -m pytest -q -x --timeout 60 -p no:cacheprovider tests/ops
step suite 240 suite.log python3 -m benchmarks.run --suite ops --device cuda --out "$OUT"

sed -n 1,12p "$OUT/results.md" 2>/dev/null
printf '%s\n' "${summary[@]}"
exit "$failed"
