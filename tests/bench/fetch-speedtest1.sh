#!/bin/sh
# fetch-speedtest1.sh OUT: puts SQLite's own benchmark, test/speedtest1.c of
# the distribution's sqlite3 source package, into OUT.
#
# What must hold: the source is of the same version as the installed library
# (so that both were written for each other), it comes from the archive this
# machine already trusts, verified by apt, and the machine's own apt
# configuration and lists stay untouched. SQLITE_SRC=folder skips the download
# and takes the file from an unpacked source tree.
set -eu

out=$1
mkdir -p "$(dirname "$out")"

if [ -n "${SQLITE_SRC:-}" ]; then
  cp "$SQLITE_SRC/test/speedtest1.c" "$out"
  exit 0
fi

die() {
  echo "fetch-speedtest1: $*; set SQLITE_SRC to an unpacked SQLite source tree" >&2
  exit 1
}

work=$(cd "$(dirname "$out")" && pwd)/speedtest1-src
rm -rf "$work"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/empty"

version=$(dpkg-query -W -f '${source:Upstream-Version}' libsqlite3-0 2>/dev/null) ||
  die "no installed libsqlite3-0 package to take the version from"

# The machine's archives, as source archives. apt names what it is configured
# for; the origin keeps third-party archives, which have no such source, out.
. /etc/os-release
key=/usr/share/keyrings/$ID-archive-keyring.gpg
if [ -e "$key" ]; then opt="[signed-by=$key] "; else opt=; fi
apt-get indextargets --format '$(ORIGIN)|$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
  awk -F'|' -v id="$ID" 'tolower($1) == id { print $2 }' | sort -u |
  sed "s|^|deb-src $opt|" > "$work/sources.list"
[ -s "$work/sources.list" ] || die "apt knows no archive of this distribution"

apt() {
  apt-get -q -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts="$work/empty" \
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" \
    -o APT::Sandbox::User=root "$@"
}
apt update > "$work/log" 2>&1 || die "apt-get update failed, see $work/log"
full=$(apt-cache -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts="$work/empty" \
  -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" showsrc sqlite3 2>> "$work/log" |
  awk -v v="$version" '$1 == "Version:" && index($2, v "-") == 1 { print $2; exit }')
[ -n "$full" ] || die "the archive has no source of sqlite3 $version"
(cd "$work" && apt source --download-only --only-source "sqlite3=$full") >> "$work/log" 2>&1 ||
  die "apt-get source failed, see $work/log"

tar -xJOf "$work/sqlite3_$version.orig.tar.xz" --wildcards '*/test/speedtest1.c' > "$out.part"
[ -s "$out.part" ] || die "no test/speedtest1.c in the source package"
mv "$out.part" "$out"
rm -rf "$work"
echo "fetched $out (sqlite3 $full)"
