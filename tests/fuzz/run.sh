#!/bin/sh
# run.sh: runs fuzz targets and counts.
#
#   run.sh OUT smoke|long SECONDS TARGET...
#
# OUT holds `loop` and, where libFuzzer is to be had, `fuzz-TARGET`. smoke: the
# kept inputs and FUZZ_RUNS mutations of them in the loop, and as many runs of
# libFuzzer. long: libFuzzer for SECONDS each, on a corpus that grows in
# OUT/corpus and is kept. One test a target and program. A failing input is left
# in OUT/found. One process at a time, with low priority.
set -u

out=$1 mode=$2 seconds=$3
shift 3
here=$(dirname "$0")
runs=${FUZZ_RUNS:-1500} seed=${FUZZ_SEED:-1}
passed=0 failed=0 skipped=0

# Programs leave their scratch folder behind when they crash: all in one place.
TDE_FUZZ_SCRATCH=$(mktemp -d "$(test -w /dev/shm && echo /dev/shm || echo "${TMPDIR:-/tmp}")/tde-fuzz-run.XXXXXX") || exit 1
export TDE_FUZZ_SCRATCH
trap 'rm -rf "$TDE_FUZZ_SCRATCH"' EXIT
trap 'exit 1' INT TERM
ASAN_OPTIONS=malloc_context_size=8:quarantine_size_mb=16:detect_leaks=1
UBSAN_OPTIONS=print_stacktrace=1
export ASAN_OPTIONS UBSAN_OPTIONS
mkdir -p "$out/found" "$out/log"

# count NAME LOG STATUS: one test.
count() {
  if [ "$3" -eq 0 ]; then
    passed=$((passed + 1))
    echo "ok    $1: $4"
  else
    failed=$((failed + 1))
    echo "FAIL  $1 (exit status $3); the input is in $out/found; the end of $2:"
    grep -v '#[0-9]*.*\(NEW\|REDUCE\|pulse\|RELOAD\)' "$2" | tail -n 40
  fi
}

# The bounds that the target itself has, for libFuzzer.
max_len() {
  case $1 in
    slot) echo 512 ;; prefix | db) echo 160 ;; unit | text) echo 256 ;;
    keydoc | service) echo 4096 ;; keyid) echo 600 ;; *) echo 1024 ;;
  esac
}

libfuzzer() {
  t=$1
  shift
  dict=
  "$out/loop" -words="$t" >"$out/$t.dict" && [ -s "$out/$t.dict" ] && dict=-dict=$out/$t.dict
  nice -n 10 "$out/fuzz-$t" -max_len="$(max_len "$t")" -timeout=20 -rss_limit_mb=2048 $dict \
    -artifact_prefix="$out/found/$t-" -print_final_stats=1 "$@" >"$out/log/fuzz-$t.log" 2>&1
  rc=$?
  done_runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$out/log/fuzz-$t.log")
  count "$t (libFuzzer)" "$out/log/fuzz-$t.log" $rc "${done_runs:-0} runs"
}

for t in "$@"; do
  kept=
  for d in "$here/corpus/$t" "$here/crashers/$t"; do
    [ -d "$d" ] && kept="$kept $d"
  done
  if [ "$mode" = smoke ]; then
    nice -n 10 "$out/loop" "$t" -runs="$runs" -seed="$seed" -crash="$out/found/$t-loop" $kept \
      >"$out/log/loop-$t.log" 2>&1
    count "$t (loop)" "$out/log/loop-$t.log" $? "$(tail -n 1 "$out/log/loop-$t.log")"
  fi
  if [ ! -x "$out/fuzz-$t" ]; then
    skipped=$((skipped + 1))
    echo "skip  $t (libFuzzer): needs clang and its libFuzzer runtime (Debian: clang, libclang-rt-dev)"
  elif [ "$mode" = smoke ]; then
    # libFuzzer adds to the first folder that it is given.
    mkdir -p "$TDE_FUZZ_SCRATCH/corpus-$t"
    libfuzzer "$t" -runs="$runs" -seed="$seed" "$TDE_FUZZ_SCRATCH/corpus-$t" $kept
  else
    mkdir -p "$out/corpus/$t"
    libfuzzer "$t" -max_total_time="$seconds" "$out/corpus/$t" $kept
  fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
