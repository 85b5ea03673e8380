#!/bin/sh
# demo.sh: a real data set in an encrypted database, with the stock sqlite3 shell.
#
#   demo.sh [PATH-OF-TDE.SO]
#
# The data is the Unicode character database (Debian package unicode-data), some
# 240,000 rows. Every claim that is printed is checked first, and each search for
# plaintext is made on a plain database, too, where it must find something: a
# search that could not fail proves nothing. Any surprise ends the demo with a
# non-zero status. Everything happens in a scratch folder, with keys of its own;
# KEEP=1 leaves it for a look around.
set -eu

so=$(readlink -f "${1:-build/tde.so}")
data=/usr/share/unicode
secret="GREEK SMALL LETTER OMEGA"   # a name that stands in the data
checks=0
began=$(date +%s)

if [ -t 1 ]; then bold=$(printf '\033[1m'); dim=$(printf '\033[2m'); off=$(printf '\033[0m')
else bold=""; dim=""; off=""; fi

die() { echo "demo: FAILED: $*" >&2; exit 1; }
title() { printf '\n%s%s%s\n' "$bold" "$1" "$off"; }
say() { printf '   %s\n' "$*"; }
typed() { printf '   %s%s%s\n' "$dim" "$1" "$off"; }
# ok TEXT: a claim that the lines before it have checked.
ok() { checks=$((checks + 1)); printf "   ok  %s\n" "$*"; }
indent() { sed 's/^/      /'; }
grouped() { echo "$1" | sed -E ':a;s/([0-9])([0-9]{3})($|,)/\1,\2\3/;ta'; }
bytes() { wc -c <"$1"; }

[ -f "$so" ] || die "no extension at ${1:-build/tde.so}; run make"
[ -f "$data/UnicodeData.txt" ] || die "package unicode-data is missing; run make deps"
command -v sqlite3 >/dev/null || die "package sqlite3 is missing; run make deps"

box=$(mktemp -d "${TMPDIR:-/tmp}/tde-demo.XXXXXX")
child=""
finish() {
  [ -z "$child" ] || kill "$child" 2>/dev/null || true
  [ -n "${KEEP:-}" ] && echo "scratch folder: $box" || rm -rf "$box"
}
trap finish EXIT
trap 'exit 1' INT TERM
cd "$box"
mkdir tmp
export TDE_INSTANCE="$box/instance" SQLITE_TMPDIR="$box/tmp"

db="file:unicode.db?vfs=tde"

# The stock shell on DATABASE with the extension loaded, and without. The shell
# opens a file that its command line names before it loads anything: so .open.
shell() { # DATABASE [SQL]
  base=$1
  shift
  sqlite3 -batch -bail -init /dev/null -cmd ".load $so" -cmd ".open $base" :memory: "$@"
}
plain_shell() { sqlite3 -batch -bail -init /dev/null "$@"; }
# The value of one expression, on a database or on nothing.
value() { shell "$1" "SELECT $2"; }

# holds FILE: does it hold the value, in either case?
holds() { LC_ALL=C grep -qaiF -e "$secret" -- "$1"; }

# ---- the data ----
bzcat "$data/Unihan_Readings.txt.bz2" | grep -v '^#' | grep . >readings.txt
cat >load.sql <<SQL
CREATE TABLE character (code TEXT PRIMARY KEY, name TEXT, category TEXT, combining INTEGER,
  bidi TEXT, decomposition TEXT, decimal TEXT, digit TEXT, numeric TEXT, mirrored TEXT,
  old_name TEXT, comment TEXT, upper TEXT, lower TEXT, title TEXT);
CREATE TABLE reading (code TEXT, kind TEXT, value TEXT);
.mode ascii
.separator ";" "\n"
.import $data/UnicodeData.txt character
.separator "\t" "\n"
.import readings.txt reading
CREATE INDEX reading_code ON reading (code, kind);
CREATE VIRTUAL TABLE meaning USING fts5(code UNINDEXED, text);
INSERT INTO meaning SELECT code, value FROM reading WHERE kind = 'kDefinition';
SQL

echo "${bold}sqlite-tde: transparent data encryption for stock SQLite${off}"
version=$(value :memory: "tde_version() ->> '\$.version'")
cipher=$(value :memory: "tde_version() ->> '\$.cipher'")
say "sqlite-tde $version on this system's SQLite $(sqlite3 -version | cut -d' ' -f1), cipher $cipher"
say "data: the Unicode character database (Debian package unicode-data)"

# ---- 1 ----
title "1. Load: the stock shell, one .load, one URI parameter"
typed "sqlite> .load tde"
typed "sqlite> .open file:unicode.db?vfs=tde"
typed "sqlite> .import UnicodeData.txt character   ..."
shell "$db" <load.sql
plain_shell plain.db <load.sql
rows=$(value "$db" "(SELECT count(*) FROM character) + (SELECT count(*) FROM reading)")
[ "$rows" -gt 200000 ] || die "only $rows rows were loaded"
ok "$(grouped "$rows") rows and a full-text index are in unicode.db"
[ "$(value "$db" "tde_status() ->> '\$.state'")" = Online ] || die "the database is not Online"
[ "$(stat -c %a instance)" = 700 ] || die "the instance folder is open to others"
ok "its key, wrapped by an RSA key that was made on first use in the instance folder"

# ---- 2 ----
title "2. Use: plain SQL, nothing to learn"
# ask CLAIM SQL: shows the answer, which must be the plain database's.
ask() {
  typed "sqlite> $2"
  shell "$db" -separator "  " "$2" >answer.txt
  plain_shell plain.db -separator "  " "$2" >expected.txt
  [ -s answer.txt ] || die "the query has no answer"
  cmp -s answer.txt expected.txt || die "the answer differs from the plain database's"
  indent <answer.txt
  ok "$1"
}
ask "the plain database answers the same" \
  "SELECT code, name, upper FROM character WHERE name LIKE 'GREEK SMALL LETTER O%' LIMIT 3"
ask "an aggregate: the same" \
  "SELECT category, count(*) FROM character GROUP BY 1 ORDER BY 2 DESC LIMIT 3"
ask "full-text search and a join: the same" \
  "SELECT m.code, r.value, m.text FROM meaning m JOIN reading r USING (code)
             WHERE meaning MATCH 'dragon' AND r.kind = 'kMandarin' ORDER BY length(m.text), m.code LIMIT 4"

# ---- 3 ----
title "3. Look for \"$secret\" in every file, also in those of a plain database"
# hidden NAME TDE-FILE PLAIN-FILE
hidden() {
  for f in "$2" "$3"; do [ -s "$f" ] || die "$1: $f is missing or empty"; done
  holds "$3" || die "$1: the search finds nothing in the plain database's file either"
  ! holds "$2" || die "$1: plaintext on disk"
  ok "$(printf '%-26s plain: found    encrypted: not found   (%s bytes searched)' \
    "$1" "$(grouped "$(bytes "$2")")")"
}
# While a connection is open: the WAL, the journal of an open transaction.
while_open() { # FILE: a script for the shell
  cat <<SQL
.output /dev/null
PRAGMA cache_size = 20;
PRAGMA journal_mode = WAL;
PRAGMA wal_autocheckpoint = 0;
UPDATE character SET comment = name WHERE category = 'Ll';
.shell cp $1-wal seen/$1-wal
PRAGMA journal_mode = DELETE;
BEGIN;
UPDATE character SET comment = lower(name);
.shell cp $1-journal seen/$1-journal
ROLLBACK;
SQL
}
mkdir seen
while_open unicode.db | shell "$db"
while_open plain.db | plain_shell plain.db

# A sort that does not fit into memory: its temporary file has no name any more,
# so look through the process that has it open and waits for us to read on.
sorting() { # FILE ARGUMENTS-OF-SQLITE3...
  out=$1
  shift
  mkfifo rows
  sqlite3 -batch -bail -init /dev/null "$@" :memory: "PRAGMA cache_size = 20; PRAGMA temp_store = FILE;
    SELECT name FROM (SELECT name FROM character UNION ALL SELECT value FROM reading)
    ORDER BY name" >rows 2>sort.err &
  child=$!
  exec 3<rows
  [ -n "$(head -c 1 <&3)" ] || die "the sort gave no rows: $(cat sort.err)"
  for fd in /proc/"$child"/fd/*; do
    case $(readlink "$fd") in "$box"/tmp/*) cat "$fd" >>"$out" ;; esac
  done
  cat <&3 >/dev/null
  exec 3<&-
  wait "$child" || die "the sort failed: $(cat sort.err)"
  child=""
  rm rows
}
sorting seen/plain.db-sort -cmd ".open plain.db"
sorting seen/unicode.db-sort -cmd ".load $so" -cmd ".open $db"

hidden "the database" unicode.db plain.db
hidden "the write-ahead log" seen/unicode.db-wal seen/plain.db-wal
hidden "the rollback journal" seen/unicode.db-journal seen/plain.db-journal
hidden "a large sort's temp file" seen/unicode.db-sort seen/plain.db-sort
gzip -c plain.db >plain.gz
gzip -c unicode.db >unicode.gz
smaller=$((100 - 100 * $(bytes unicode.gz) / $(bytes unicode.db)))
[ "$smaller" -le 2 ] || die "the encrypted file can be compressed by $smaller %"
ok "gzip shrinks the plain file by $((100 - 100 * $(bytes plain.gz) / $(bytes plain.db))) %," \
   "the encrypted one by $smaller %: nothing in it repeats"

# ---- 4 ----
title "4. What it costs in size"
a=$(bytes plain.db) b=$(bytes unicode.db)
say "plain      $(grouped "$a") bytes"
say "encrypted  $(grouped "$b") bytes"
permille=$(((b - a) * 1000 / a))
[ "$b" -gt "$a" ] && [ "$permille" -lt 30 ] || die "an overhead of $permille per mille"
ok "$((permille / 10)).$((permille % 10)) % more: 48 bytes a page, and a header of 64 KiB"

# ---- 5 ----
title "5. Convert an existing database, both ways"
dump_of() { shell "$1" .dump | sha256sum; }
cp plain.db app.db
before=$(dump_of "file:app.db")
typed "sqlite> SELECT tde_encrypt('app.db');"
value :memory: "tde_encrypt('app.db')" >answer.txt
! holds app.db || die "plaintext in the encrypted file"
[ "$(dump_of 'file:app.db?vfs=tde')" = "$before" ] || die "the encrypted database holds something else"
ok "encrypted in place; its .dump is the same to the byte"
typed "sqlite> SELECT tde_decrypt('app.db', 'back.db');"
value :memory: "tde_decrypt('app.db', 'back.db')" >answer.txt
holds back.db || die "the decrypted file is not plain"
[ "$(dump_of file:back.db)" = "$before" ] || die "the decrypted database holds something else"
ok "decrypted into another file; its .dump is the same to the byte"

# ---- 6 ----
title "6. Verify, and notice a single changed bit"
typed "sqlite> SELECT tde_verify();"
report=$(value "$db" "tde_verify()")
echo "$report" | indent
units=$(value :memory: "'$report' ->> '\$.main_units'")
[ "$(value :memory: "'$report' ->> '\$.ok'")" = 1 ] || die "verification failed"
ok "$(grouped "$units") units opened, each authenticated for its place in this file"
cp unicode.db damaged.db
at=$((b / 2))
bit=$(od -An -tu1 -j "$at" -N 1 damaged.db)
# shellcheck disable=SC2059  # the octal escape is the format
printf "\\$(printf %03o $((bit ^ 1)))" | dd of=damaged.db bs=1 seek="$at" conv=notrunc status=none
report=$(value 'file:damaged.db?vfs=tde' "tde_verify() ->> '\$.bad_units'")
[ "$report" = "$(value :memory: "json_array(json_object('role', 'main', 'unit',
  ($at - 65536) / 4144, 'class', 'tampered'))")" ] || die "the changed bit was reported as: $report"
echo "$report" | indent
shell "$db" .dump >dump.txt
grep -q '^COMMIT' dump.txt || die "the undamaged database can not be dumped"
if shell 'file:damaged.db?vfs=tde' .dump >dump.txt 2>error.txt &&
   grep -q '^COMMIT' dump.txt; then die "a damaged page was read"; fi
ok "one bit changed in a copy: found, named, and never read as data"

# ---- 7 ----
title "7. Without the key"
# The last line of what a failing query says.
refusal() { if "$@" "SELECT count(*) FROM character" >answer.txt 2>error.txt; then
    die "the database was read"; fi
  [ ! -s answer.txt ] || die "an answer in spite of an error"
  grep -v '^ ' error.txt | tail -n 1; }
typed "\$ sqlite3 unicode.db 'SELECT ...'                   (no extension)"
refusal sqlite3 -batch -init /dev/null unicode.db | indent
grep -q "not a database" error.txt || die "an unexpected error: $(cat error.txt)"
ok "to SQLite alone it is not a database"
typed "\$ TDE_INSTANCE=elsewhere sqlite3 ...               (extension, another instance)"
mkdir other
TDE_INSTANCE="$box/other/instance"
shell 'file:other.db?vfs=tde' 'CREATE TABLE mine (a)'    # an instance with a key of its own
refusal shell "$db" | indent
state=$(value "$db" "tde_status() ->> '\$.state'")
why=$(value "$db" "tde_status() ->> '\$.error.message'")
remedy=$(value "$db" "tde_status() ->> '\$.error.remedy'")
say "tde_status(): $state: $why"
say "              $remedy"
[ "$state" = Inaccessible ] || die "the state is $state"
[ -n "$why" ] && [ -n "$remedy" ] || die "no reason or no remedy is given"
TDE_INSTANCE="$box/instance"
[ "$(value "$db" "count(*) FROM character")" -gt 30000 ] || die "the database is not back"
ok "refused, with the reason and the next step; with its key it is back at once"

# ---- the end ----
title "Summary"
say "$checks claims, all checked just now, in $(($(date +%s) - began)) s. The stock SQLite wrote $(grouped "$rows") rows"
say "and never knew: the database, its log, its journal and its temporary file held none of"
say "them in the clear. To do the same with your own:"
say ""
say "  sqlite3 -cmd '.load $so' -cmd '.open file:app.db?vfs=tde'"
say ""
say "Keys are in ~/.local/share/sqlite-tde: back that folder up, apart from the databases."
