#!/usr/bin/env python3
"""Line coverage of the product's modules, from gcov's data.

    coverage.py BUILD MODULE=LEAST...

Each source is compiled twice (for the extension and for static linking); a line
counts as run when either ran it. Prints a row a file and a row a module; exit 1
when a module is below its least percentage or has no data at all.
"""

import collections
import json
import os
import subprocess
import sys


def gcov(build):
    """(source, line, times run) of every object that has notes."""
    notes = [os.path.abspath(os.path.join(folder, f))
             for folder, _, names in os.walk(build) for f in names if f.endswith(".gcno")]
    run = subprocess.run(["gcov", "--json-format", "--stdout", *notes], capture_output=True,
                         text=True, check=True)
    for document in filter(None, run.stdout.splitlines()):
        for file in json.loads(document)["files"]:
            for line in file["lines"]:
                yield file["file"], line["line_number"], line["count"]


def module_of(path, modules):
    return next((m for m in modules if path.startswith(m + "/") and path.endswith(".c")), None)


def main():
    build = sys.argv[1]
    least = {m: float(n) for m, n in (a.split("=") for a in sys.argv[2:])}
    lines = collections.defaultdict(dict)
    for path, n, count in gcov(build):
        if module_of(path, least):
            lines[path][n] = lines[path].get(n, 0) + count
    failed = False
    for module in least:
        run = total = 0
        for path in sorted(p for p in lines if module_of(p, least) == module):
            hit = sum(1 for c in lines[path].values() if c)
            run, total = run + hit, total + len(lines[path])
            print(f"  {path:<34} {hit:5} of {len(lines[path]):5}  {100 * hit / len(lines[path]):5.1f} %")
        percent = 100 * run / total if total else 0.0
        enough = total > 0 and percent >= least[module]
        failed |= not enough
        print(f"{module:<36} {run:5} of {total:5}  {percent:5.1f} %"
              + ("" if enough else f"  BELOW {least[module]:.0f} %"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
