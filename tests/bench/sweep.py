#!/usr/bin/env python3
"""sweep.py: cost by database size, page size, number of open databases and reader threads,
plain and encrypted; the program `sweep` (and `workloads` for threads) measures.

Each point is a process; plain and encrypted follow each other, and rounds repeat that.
Tables hold medians. Databases of one point are removed before the next one is built, so
the disk needs room for two copies of the largest.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys

import chart
from run import grid, update_docs

MODES = ("plain", "tde")


class Sweep:
    def __init__(self, a):
        self.a = a
        self.ext = os.path.abspath(os.path.join(a.build, "tde.so"))
        self.out = os.path.join(a.build, "bench")

    def call(self, mode, program, *args):
        folder = os.path.join(self.a.dir, mode)
        os.makedirs(folder, exist_ok=True)
        env = dict(os.environ, TDE_INSTANCE=os.path.join(folder, "instance.json"), SQLITE_TMPDIR=folder)
        cmd = [os.path.join(self.out, program), args[0], "--db", os.path.join(folder, "sweep.db"), *args[1:]]
        if mode == "tde":
            cmd += ["--ext", self.ext]
        r = subprocess.run(cmd, env=env, stdout=subprocess.PIPE, text=True, check=False)
        if r.returncode != 0:
            sys.exit("sweep.py: %s in mode %s failed (%d)" % (" ".join(args), mode, r.returncode))
        lines = r.stdout.strip().splitlines()
        return json.loads(lines[-1]) if lines else None

    def clear(self):
        for mode in MODES:
            shutil.rmtree(os.path.join(self.a.dir, mode), ignore_errors=True)

    def medians(self, program, args, rounds):
        """Both modes in alternation; every value that they report, as its median."""
        got = {m: [] for m in MODES}
        for i in range(rounds):
            for mode in (MODES if i % 2 == 0 else MODES[::-1]):
                got[mode].append(self.call(mode, program, *args))
        return {m: {k: statistics.median(r[k] for r in got[m]) for k, v in got[m][0].items()
                    if isinstance(v, (int, float))} for m in MODES}

    def point(self, title, build, program, args, rounds=None):
        self.clear()
        for mode in MODES:
            if build:
                self.call(mode, *build)
        print("sweep: " + title, file=sys.stderr)
        return self.medians(program, args, rounds or self.a.rounds)


def pair(r, key, form="%.1f"):
    p, t = r["plain"][key], r["tde"][key]
    return [form % p, form % t, "%.2f" % (t / p)]


def by_size(s):
    rows = [["size, MB", "open, µs: plain", "tde", "ratio", "point read, µs: plain", "tde", "ratio", "backup, ms: plain",
             "tde", "verify, ms", "rotate protector, ms", "rotate DEK, ms"]]
    data = {}
    for mb in s.a.sizes:
        r = s.point("%d MB" % mb, ("sweep", "build", "--mb", str(mb)), "sweep", ("cost",),
                    1 if mb > 2000 else None)
        data[mb] = r
        rows.append(["%d" % mb] + pair(r, "open_us", "%.0f") + pair(r, "point_us", "%.2f") + [
            "%.0f" % r["plain"]["backup"], "%.0f" % r["tde"]["backup"], "%.0f" % r["tde"]["verify"],
            "%.1f" % r["tde"]["rotate"], "%.0f" % r["tde"]["rotate_dek"]])
    return rows, data


def by_page(s):
    rows = [["page size", "scan, ms: plain", "tde", "ratio", "point read, µs: plain", "tde", "ratio", "file size, ratio"]]
    data = {}
    for page in (512, 1024, 4096, 8192, 16384, 65536):
        r = s.point("pages of %d" % page, ("sweep", "build", "--mb", str(s.a.page_mb), "--page", str(page)),
                    "sweep", ("read",))
        data[page] = r
        rows.append(["%d" % page] + pair(r, "scan") + pair(r, "point_us", "%.2f")
                    + ["%.3f" % (r["tde"]["bytes"] / r["plain"]["bytes"])])
    return rows, data


def by_count(s):
    rows = [["databases open", "first open, µs: plain", "tde", "one more, µs: plain", "tde", "ratio",
             "next read, µs: plain", "tde", "ratio", "resident KiB each: plain", "tde", "more"]]
    data = {}
    for n in s.a.counts:
        build = ("sweep", "many", "--n", str(n))  # the first run makes the files
        r = s.point("%d databases" % n, build, "sweep", ("many", "--n", str(n)))
        data[n] = r
        kib = [r[m]["kib_each"] for m in MODES]
        rows.append(["%d" % n] + ["%.0f" % r[m]["first_us"] for m in MODES] + pair(r, "open_us", "%.0f") + pair(r, "read_us")
                    + ["%.1f" % kib[0], "%.1f" % kib[1], "%.1f" % (kib[1] - kib[0])])
    return rows, data


def by_threads(s):
    rows = [["reader threads", "reads a second: plain", "tde", "tde to plain"]]
    data = {}
    s.clear()
    scale = ("--scale", repr(s.a.thread_scale))
    for mode in MODES:
        s.call(mode, "workloads", "readers", "--prepare", *scale)
    for n in (1, 2, 4, 8):
        r = s.medians("workloads", ("readers", "--threads", str(n), *scale), s.a.rounds)
        rate = [r[m]["work"] / r[m]["seconds"] for m in MODES]
        data[n] = r
        rows.append(["%d" % n] + ["%.0f" % x for x in rate] + ["%.2f" % (rate[1] / rate[0])])
    return rows, data


PARTS = [
    ("size", by_size, "By database size (4 KiB pages, one row a page, zeros; page cache 2 MiB; files in the OS cache as far"
     " as it goes)"),
    ("pages", by_page, "By page size (one row a page; page cache 2 MiB)"),
    ("count", by_count, "By number of open databases (each opened and read, and kept open: the first open"
     " unwraps its key; then one more connection to each, opened, read and closed)"),
    ("threads", by_threads, "By reader threads (a connection each, point reads)"),
]


def numbers(text):
    return [int(x) for x in text.split(",")]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--build", default="build")
    p.add_argument("--dir")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--sizes", type=numbers, default=[10, 100, 1000, 10000], help="MB, with commas")
    p.add_argument("--counts", type=numbers, default=[1, 10, 100, 1000, 10000])
    p.add_argument("--page-mb", type=int, default=100)
    p.add_argument("--thread-scale", type=float, default=0.5)
    p.add_argument("--only", help="size, pages, count, threads; with commas")
    p.add_argument("--update-docs", action="store_true")
    a = p.parse_args()
    a.dir = os.path.abspath(a.dir or os.path.join(a.build, "bench", "sweep-work"))
    s, text, all_data = Sweep(a), [], {}
    for name, measure, title in PARTS:
        if a.only and name not in a.only.split(","):
            continue
        rows, all_data[name] = measure(s)
        text += ["### " + title, ""] + grid(rows) + [""]
    s.clear()
    out = "\n".join(text)
    with open(os.path.join(s.out, "sweep.txt"), "w", encoding="utf-8") as f:
        f.write(out)
    with open(os.path.join(s.out, "sweep.json"), "w", encoding="utf-8") as f:
        json.dump(all_data, f, indent=1)
    print(out)
    if "size" in all_data:
        series = [(title, [(mb, r["tde"][key]) for mb, r in all_data["size"].items()]) for key, title in (
            ("open_us", "open, µs"), ("rotate", "rotate protector, ms"), ("verify", "verify, ms"),
            ("backup", "backup, ms"), ("rotate_dek", "rotate DEK, ms"))]
        chart.lines(os.path.join(s.out, "size.svg"), "database size, MB", "time", series, "y")
    if a.update_docs:
        update_docs(out, "sweep")
        if os.path.exists(os.path.join(s.out, "size.svg")) and "size" in all_data:
            shutil.copy(os.path.join(s.out, "size.svg"), os.path.join(os.path.dirname(__file__), "size.svg"))


if __name__ == "__main__":
    main()
