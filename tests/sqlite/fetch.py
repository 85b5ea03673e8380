#!/usr/bin/env python3
"""Fetches SQLite's source, with its test suite, from the Debian mirror that
this machine is configured for.

    fetch.py --series installed|newest --dest DIR

prints the folder of the unpacked source. "installed" is the source package of
the libsqlite3-0 that is installed here, "newest" that of Debian's unstable
suite. What must hold: the machine's own apt configuration and lists stay
untouched (every path that apt writes to is under DIR), the mirror and its
signing key are the ones the machine already trusts, root is not needed, and a
source once fetched is used again without the network.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys

APT_ETC = "/etc/apt"
NEWEST_SUITE = "sid"
SOURCE = "sqlite3"
LIBRARY = "libsqlite3-0"


class FetchError(Exception):
    """What the user is told when the source cannot be had."""


def codename():
    with open("/etc/os-release", encoding="utf-8") as f:
        for line in f:
            if line.startswith("VERSION_CODENAME="):
                return line.split("=", 1)[1].strip().strip('"')
    raise FetchError("/etc/os-release names no VERSION_CODENAME: not a Debian release")


def installed_version():
    """The version of the source package that the installed library is from."""
    run = subprocess.run(["dpkg-query", "-W", "-f", "${source:Version}", LIBRARY],
                         capture_output=True, text=True, check=False)
    if run.returncode != 0 or not run.stdout:
        raise FetchError(f"{LIBRARY} is not installed")
    return run.stdout


def one_line_entries(text):
    """(options, uri, suites, components) of each deb line of a .list file."""
    pattern = re.compile(r"^deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)$")
    for line in text.splitlines():
        m = pattern.match(line.split("#", 1)[0].strip())
        if m:
            options = dict(o.split("=", 1) for o in (m.group(1) or "").split() if "=" in o)
            yield options.get("signed-by"), [m.group(2)], [m.group(3)], m.group(4).split()


def deb822_entries(text):
    """The same of each stanza of a .sources file."""
    for stanza in re.split(r"\n\s*\n", text):
        fields, last = {}, None
        for line in stanza.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t" and last:
                fields[last] += "\n" + line
            elif ":" in line:
                last, value = line.split(":", 1)
                last = last.strip().lower()
                fields[last] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled") != "no":
            yield (fields.get("signed-by"), fields.get("uris", "").split(),
                   fields.get("suites", "").split(), fields.get("components", "").split())


def machine_entries():
    files = [os.path.join(APT_ETC, "sources.list")]
    parts = os.path.join(APT_ETC, "sources.list.d")
    if os.path.isdir(parts):
        files += [os.path.join(parts, n) for n in sorted(os.listdir(parts))]
    for path in files:
        if not os.path.isfile(path) or not os.access(path, os.R_OK):
            continue
        with open(path, encoding="utf-8") as f:
            text = f.read()
        if path.endswith(".sources"):
            yield from deb822_entries(text)
        elif path.endswith(".list"):
            yield from one_line_entries(text)


def source_stanzas(series):
    """deb-src stanzas for the mirrors that this machine has its release from."""
    release, stanzas = codename(), []
    for signed_by, uris, suites, components in machine_entries():
        if "main" not in components:
            continue
        if series == "newest":
            suites = [NEWEST_SUITE] if release in suites else []
        else:
            suites = [s for s in suites
                      if s == release or s.startswith((release + "-", release + "/"))]
        if not suites:
            continue
        stanza = (f"Types: deb-src\nURIs: {' '.join(uris)}\n"
                  f"Suites: {' '.join(suites)}\nComponents: main\n")
        if signed_by:
            stanza += f"Signed-By: {signed_by}\n"
        stanzas.append(stanza)
    if not stanzas:
        raise FetchError(f"{APT_ETC} names no Debian mirror for {release}")
    return stanzas


def apt_config(series, work):
    """Options that keep everything apt reads as a source and writes under work."""
    sources = os.path.join(work, "apt.sources")
    for sub in ("lists/partial", "cache/archives/partial"):
        os.makedirs(os.path.join(work, sub), exist_ok=True)
    with open(sources, "w", encoding="utf-8") as f:
        f.write("\n".join(source_stanzas(series)))
    settings = {
        "Dir::Etc::SourceParts": "/nonexistent",
        "Dir::Etc::SourceList": sources,
        "Dir::State::lists": os.path.join(work, "lists"),
        "Dir::Cache": os.path.join(work, "cache"),
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "APT::Update::Error-Mode": "any",
    }
    if os.geteuid() == 0:
        # apt's own unprivileged user may not enter this folder.
        settings["APT::Sandbox::User"] = "root"
    return [x for k, v in settings.items() for x in ("-o", f"{k}={v}")]


def run_tool(cmd, cwd, what):
    run = subprocess.run(cmd, cwd=cwd, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        tail = "\n".join((run.stdout + run.stderr).strip().splitlines()[-5:])
        raise FetchError(f"{what}:\n{tail}")
    return run.stdout


def newest_version(options):
    out = run_tool(["apt-cache", *options, "showsrc", "--only-source", SOURCE], None,
                   "no source package is listed")
    best = None
    for v in re.findall(r"^Version: (\S+)$", out, re.M):
        if best is None or subprocess.run(["dpkg", "--compare-versions", v, "gt", best],
                                          check=False).returncode == 0:
            best = v
    if best is None:
        raise FetchError("the mirror lists no source package of SQLite")
    return best


def fetch(series, dest):
    work = os.path.join(dest, series)
    os.makedirs(work, exist_ok=True)
    wanted = installed_version() if series == "installed" else None
    ready = os.path.join(work, "version")
    tree = os.path.join(work, "tree")
    if os.path.isfile(ready):
        with open(ready, encoding="utf-8") as f:
            have = f.read().strip()
        if wanted in (None, have):
            return tree
    for tool in ("apt-get", "dpkg-source"):
        if not shutil.which(tool):
            raise FetchError(f"{tool} is missing (packages apt and dpkg-dev)")
    options = apt_config(series, work)
    run_tool(["apt-get", "-q", *options, "update"], work,
             "the Debian mirror cannot be reached and no source is cached")
    version = wanted or newest_version(options)
    download = os.path.join(work, "download")
    shutil.rmtree(download, ignore_errors=True)
    os.makedirs(download)
    run_tool(["apt-get", "-q", *options, "--only-source", "--download-only", "source",
              f"{SOURCE}={version}"], download, f"{SOURCE} {version} cannot be fetched")
    dsc = [n for n in os.listdir(download) if n.endswith(".dsc")]
    shutil.rmtree(tree, ignore_errors=True)
    # apt has verified what it fetched against the signed list.
    run_tool(["dpkg-source", "--no-check", "-x", os.path.join(download, dsc[0]), tree],
             work, "the source package does not unpack")
    with open(ready, "w", encoding="utf-8") as f:
        f.write(version + "\n")
    return tree


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--series", choices=("installed", "newest"), required=True)
    parser.add_argument("--dest", required=True)
    args = parser.parse_args()
    try:
        print(fetch(args.series, os.path.abspath(args.dest)))
    except (FetchError, OSError) as e:
        print(f"SQLite's source is not to be had: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
