#!/bin/sh
# profile.sh PROGRAM WORKLOAD MODE EXT DIR [SCALE]: where one workload's time goes.
#
# Three views of the same run: callgrind's instruction counts (of the timed part
# alone, for all but speedtest1's start), the system calls by strace, and, where
# the kernel allows it, perf's samples, which alone show the kernel's share.
# callgrind's machine has no AVX-512 or VAES: a vectorised AES-GCM engine falls
# back to a slower one there, so read its share from perf. It also counts `rep
# stosb` byte by byte: memset looks far dearer than it is.
set -eu
program=$1 workload=$2 mode=$3 ext=$4 dir=$5 scale=${6:-0.1}

case $mode in
  tde) load="--ext $ext" ;;
  plain) load= ;;
  *) echo "profile: MODE is tde or plain" >&2; exit 2 ;;
esac
work=$dir/profile-$workload-$mode
rm -rf "$work"
mkdir -p "$work"
export TDE_INSTANCE="$work/instance.json" SQLITE_TMPDIR="$work"
db=$work/profile.db

# shellcheck disable=SC2086
"$program" "$workload" --db "$db" --scale "$scale" --prepare $load

echo "== $workload, $mode, scale $scale: instructions (callgrind)"
instr=no
case $workload in speedtest1*) instr=yes ;; esac
command -v valgrind > /dev/null || { echo "profile: valgrind is not installed" >&2; exit 1; }
# shellcheck disable=SC2086
valgrind --tool=callgrind --instr-atstart=$instr --callgrind-out-file="$work/callgrind.out" \
  "$program" "$workload" --db "$db" --scale "$scale" $load > "$work/out" 2> "$work/valgrind.log" ||
  { tail -20 "$work/valgrind.log"; exit 1; }
# Lines of functions only, with the paths of sources and libraries shortened.
functions() {
  callgrind_annotate "$@" "$work/callgrind.out" | grep -E '^ *[0-9,]+ \(' |
    sed -E 's|\[[^]]*/([^]/]+)\]|[\1]|; s|  \.?/[^ ]*/([^/ :]+):|  \1:|' | cut -c1-120
}
functions | head -30
if [ "$mode" = tde ]; then
  echo "== the extension's functions, with what they call"
  functions --inclusive=yes | grep -F '[tde.so]' | head -30
fi

echo "== system calls (strace -c -f)"
if command -v strace > /dev/null; then
  # shellcheck disable=SC2086
  strace -c -f -o "$work/strace" "$program" "$workload" --db "$db" --scale "$scale" $load > "$work/out" &&
    head -20 "$work/strace"
else
  echo "strace is not installed"
fi

echo "== samples (perf, cpu-clock)"
# shellcheck disable=SC2086
if perf record -q -e cpu-clock -F 4000 -o "$work/perf.data" \
    "$program" "$workload" --db "$db" --scale "$scale" $load > "$work/out" 2> "$work/perf.log"; then
  for by in dso dso,symbol; do
    perf report -i "$work/perf.data" --stdio --sort $by --percent-limit 0.7 2> "$work/perf.log" |
      grep -vE '^#|^$' | head -30
  done
else
  echo "perf is not usable here: $(head -1 "$work/perf.log")"
fi
tail -1 "$work/out"
echo "kept in $work: callgrind.out, strace, perf.data"
