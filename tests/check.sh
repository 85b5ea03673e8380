#!/bin/sh
# check.sh: runs suites one after the other and adds up their totals.
#
#   check.sh LOGDIR NAME=COMMAND...
#
# A suite's last line must be `N passed, N failed, N skipped`; with NAME:exit the
# exit status alone counts, as one test. A suite that ends without its totals, or
# fails while it says that nothing failed, is a failure. The whole output of each
# is kept in LOGDIR. REPORTS names the folder where a sanitizer or valgrind puts
# its reports, whichever process they are about: each is a failure, but for those
# about a program of FOREIGN (reports are called TOOL.PROGRAM.PID) in which nothing
# of the product appears. The last line printed is the sum; exit 1 when anything failed.
set -u

dir=$1
shift
mkdir -p "$dir"
passed=0 failed=0 skipped=0

# Shows what a person needs: failures and reasons for skipping.
show() {
  grep -iE '(^|[^a-z])(fail(ed|ure)?|skip(ped)?|error|warning)([^a-z]|$)' "$1" |
    grep -vE '^[0-9]+ passed, |^[A-Za-z0-9_./-]+ +[0-9]+ passed +0 failed' | head -n "$2"
}

# A report about a program of FOREIGN in which nothing of the product appears?
foreign() {
  set -f # patterns, not file names
  for program in ${FOREIGN:-}; do
    # shellcheck disable=SC2254  # a pattern on purpose
    case ${1##*/} in *.$program.*)
      set +f
      ! grep -qE 'tde\.so|(ext|ext/base|vfs|keyprovider|sql)/[a-z_]+\.[ch]:' "$1"
      return ;;
    esac
  done
  set +f
  return 1
}

for suite in "$@"; do
  name=${suite%%=*}
  command=${suite#*=}
  kind=totals
  case "$name" in *:exit) kind=exit; name=${name%:exit} ;; esac
  log="$dir/$(echo "$name" | tr / -).log"
  began=$(date +%s)
  # Some tests run programs as another user.
  [ -z "${REPORTS:-}" ] || { rm -rf "$REPORTS" && mkdir -p "$REPORTS" && chmod 1777 "$REPORTS"; }
  sh -c "$command" >"$log" 2>&1 </dev/null
  rc=$?
  took=$(($(date +%s) - began))
  if [ $kind = exit ]; then
    p=$((rc == 0)) f=$((rc != 0)) s=0
  else
    # make adds a line of its own when a target failed.
    totals=$(grep -v '^make' "$log" | tail -n 1 | sed -nE 's/^([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p')
    if [ -n "$totals" ]; then
      p=${totals%% *} f=$(echo "$totals" | cut -d' ' -f2) s=${totals##* }
      [ "$rc" -eq 0 ] || [ "$f" -gt 0 ] || { f=1; echo "$name: exit status $rc" >>"$log"; }
    else
      p=0 f=1 s=0
      echo "$name: no totals; exit status $rc" >>"$log"
    fi
  fi
  if [ -n "${REPORTS:-}" ]; then
    for report in $(find "$REPORTS" -type f -size +0); do
      foreign "$report" && continue
      f=$((f + 1))
      { echo "failed: $report:"; head -n 60 "$report"; } >>"$log"
    done
  fi
  line=$(printf '%-24s %5d passed %3d failed %3d skipped %5d s' "$name" "$p" "$f" "$s" "$took")
  echo "$line"
  if [ "$f" -gt 0 ]; then
    show "$log" 40
    echo "  ... the last lines of $log:"
    tail -n 25 "$log"
  elif [ "$s" -gt 0 ]; then
    show "$log" 20 | sed 's/^/  /'
  fi
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
