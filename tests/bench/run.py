#!/usr/bin/env python3
"""run.py: plain and encrypted SQLite against each other, and against peers (modes.py),
workload by workload.

Each measurement is one process of the program `workloads`. Modes alternate
within a round and their order turns round by round, so that a drift of the
machine (heat, neighbours, a filling disk) hits both alike. What a ratio
compares is the same program on the same library: only the encryption differs.

What must hold: a workload that fails in any mode ends the run with its message
and no table; nothing is left out of a table silently.
"""
import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys

import chart
from modes import modes_of

HERE = os.path.dirname(os.path.abspath(__file__))

# name, title, short title, database file, target ratios (or None): with OpenSSL 3.0's AES-GCM,
# with a vector one
WORKLOADS = [
    ("speedtest1", "speedtest1 --size {speed}, rollback journal", "speedtest1", "speed.db", (1.15, 1.07)),
    ("speedtest1-wal", "speedtest1 --size {speed}, WAL", "speedtest1, WAL", "speed.db", (1.15, 1.05)),
    ("scan", "full scan of {mb} MB, 2 MiB page cache", "scan", "read.db", (1.50, 1.15)),
    ("point", "{point:,} random point reads, one transaction, 2 MiB page cache", "point reads", "read.db",
     (1.50, 1.20)),
    ("point-map", "the same {point:,} with PRAGMA mmap_size, plain SQLite, too", "point reads, mmap", "read.db", None),
    ("commits", "{commits:,} single-row commits, WAL, synchronous NORMAL", "commits, WAL", "write.db",
     (1.05, 1.00)),
    ("bulk", "{bulk:,}-row insert in one transaction, WAL, and checkpoint", "bulk insert, WAL", "write.db",
     (1.05, 0.95)),
    ("opens", "{opens:,} databases opened, read and closed, keys live", "opens", "opens", (1.20, 1.20)),
    ("opens-bare", "the same {opens:,} with tde_functions=off", "opens, no functions", "opens", None),
]
PREPARED = [("scan", "read.db"), ("opens", "opens")]


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--build", default="build", help="folder with tde.so and bench/workloads")
    p.add_argument("--ext", help="the extension (default: BUILD/tde.so)")
    p.add_argument("--dir", help="where the databases go (default: BUILD/bench/work)")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--scale", type=float, default=1.0, help="1: the full sizes")
    p.add_argument("--only", help="workloads, separated by commas")
    p.add_argument("--plain-only", action="store_true", help="measure plain SQLite alone")
    p.add_argument("--also", action="append", default=[], metavar="NAME=TDE.SO",
                   help="a further build of the extension to compare; may be repeated")
    p.add_argument("--peers", default="", metavar="LIBRARIES",
                   help="peers to run beside: sqlcipher, mc, or both with a comma (built by make bench-peers)")
    p.add_argument("--smoke", action="store_true",
                   help="no times: each workload once in each mode, small, and a count of passes")
    p.add_argument("--update-docs", action="store_true", help="put the table into README.md")
    a = p.parse_args()
    if a.rounds < 1 or not a.scale > 0:
        p.error("rounds and scale must be positive")
    a.ext = os.path.abspath(a.ext or os.path.join(a.build, "tde.so"))
    a.dir = os.path.abspath(a.dir or os.path.join(a.build, "bench", "work"))
    names = [w[0] for w in WORKLOADS]
    a.chosen = a.only.split(",") if a.only else names
    if a.update_docs and (a.only or a.plain_only or a.also):
        p.error("--update-docs wants the whole table: every workload, plain and tde")
    for n in a.chosen:
        if n not in names:
            p.error("no workload %r; there are: %s" % (n, " ".join(names)))
    also = []
    for pair in a.also:
        name, eq, path = pair.partition("=")
        if not eq or not name.isidentifier() or name in ("plain", "tde"):
            p.error("--also wants NAME=TDE.SO with a new name")
        also.append((name, os.path.abspath(path)))
    a.modes = modes_of(a.build, a.ext, a.plain_only, also, [x for x in a.peers.split(",") if x])
    for m in a.modes.values():
        for path in [m.program] + ([m.ext] if m.ext else []):
            if not os.path.exists(path):
                p.error("%s does not exist: make all bench-peers, or other options" % path)
    return a


class Bench:
    def __init__(self, a):
        self.a = a
        self.env = dict(os.environ, SQLITE_TMPDIR=a.dir)

    def folder(self, mode):
        return os.path.join(self.a.dir, mode)

    def call(self, mode, name, *more):
        """Runs the program; its last line of output is JSON. Ends the run on failure."""
        cmd = [self.a.modes[mode].program, name, *self.a.modes[mode].args, *more]
        # Each build of the extension has an instance (and so a key) of its own.
        env = dict(self.env, TDE_INSTANCE=os.path.join(self.folder(mode), "instance.json"))
        r = subprocess.run(cmd, env=env, stdout=subprocess.PIPE, text=True, check=False)
        if r.returncode != 0:
            sys.exit("run.py: %s in mode %s failed (%d)" % (name, mode, r.returncode))
        lines = r.stdout.strip().splitlines()
        return json.loads(lines[-1]) if lines else None

    def work(self, mode, name, *more, db_mode=None):
        db = os.path.join(self.folder(db_mode or mode),
                          next(w[3] for w in WORKLOADS if w[0] == name))
        return self.call(mode, name, "--db", db, "--scale", repr(self.a.scale), *more)

    def prepare(self):
        for mode in self.a.modes:
            shutil.rmtree(self.folder(mode), ignore_errors=True)
            os.makedirs(self.folder(mode))
            for name, db in PREPARED:
                if any(w[3] == db and w[0] in self.a.chosen for w in WORKLOADS):
                    self.work(mode, name, "--prepare")
        os.sync()   # so that no write-back of these files falls into a timed run

    def rounds(self):
        runs = {n: {m: [] for m in self.a.modes} for n in self.a.chosen}
        modes = list(self.a.modes)
        for r in range(self.a.rounds):
            for name in self.a.chosen:
                for mode in (modes if r % 2 == 0 else modes[::-1]):
                    runs[name][mode].append(self.work(mode, name))
            print("round %d of %d" % (r + 1, self.a.rounds), file=sys.stderr)
        return runs


def fsync_cost(folder):
    """Median microseconds of a 4 KiB write with fdatasync in that folder."""
    import time
    path = os.path.join(folder, "fsync-probe")
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    times = []
    try:
        for i in range(101):
            t = time.perf_counter()
            os.pwrite(fd, b"x" * 4096, 4096 * (i % 16))
            os.fdatasync(fd)
            times.append(time.perf_counter() - t)
    finally:
        os.close(fd)
        os.unlink(path)
    return statistics.median(times) * 1e6


def cpu_model():
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as f:
        for line in f:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def mount_type(folder):
    r = subprocess.run(["findmnt", "-n", "-o", "FSTYPE", "-T", folder], stdout=subprocess.PIPE,
                       text=True, check=False)
    return r.stdout.strip() or "unknown"


def machine_facts(bench):
    a = bench.a
    f = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "file_system": mount_type(a.dir),
        "fdatasync_us": round(fsync_cost(a.dir)),
        "rounds": a.rounds,
        "scale": a.scale,
    }
    for mode in a.modes:
        facts = bench.call(mode, "facts")
        f.setdefault("sqlite", facts["sqlite"])
        if facts["peer"]:
            f.setdefault("peers", {})[mode] = "%s on SQLite %s" % (facts["peer"], facts["sqlite"])
        if a.modes[mode].ext:
            f["openssl"] = facts["openssl"]
            f.setdefault("tde_version", {})[mode] = facts["tde"]
    return f


def title(name, scale, runs):
    text = next(w[1] for w in WORKLOADS if w[0] == name)
    first = next(iter(runs.values()))[0]
    return text.format(speed=first["work"], mb=round(first["file_bytes"] / 1e6), point=first["work"],
                       commits=first["work"], bulk=first["work"], opens=first["work"])


def target_of(name, facts):
    """By the engine in use: OpenSSL has the vector code from 3.1 on."""
    targets = next(w[4] for w in WORKLOADS if w[0] == name)
    if targets is None:
        return None
    scalar, vector = targets
    version = next(iter(facts.get("tde_version", {}).values()), {})
    if isinstance(version, str):
        version = json.loads(version)
    return scalar if version.get("engine", "").startswith("OpenSSL 3.0") else vector


def spread(values):
    return min(values), statistics.median(values), max(values)


def cpu(run):
    return run["user"] + run["system"]


def summarise(a, facts, runs):
    """One row for each workload and encrypted mode (plain alone when it is the only one)."""
    rows = []
    for name in a.chosen:
        for mode in [m for m in a.modes if a.modes[m].base] or ["plain"]:
            plain = runs[name][a.modes[mode].base or "plain"]
            sealed = runs[name][mode]
            ratios = [s["seconds"] / p["seconds"] for s, p in zip(sealed, plain)]
            row = {
                "workload": name,
                "title": title(name, a.scale, runs[name]),
                "mode": mode,
                "target": target_of(name, facts),
                "plain_seconds": spread([p["seconds"] for p in plain]),
                "seconds": spread([s["seconds"] for s in sealed]),
                "ratio": statistics.median(s["seconds"] for s in sealed)
                / statistics.median(p["seconds"] for p in plain),
                "ratio_spread": (min(ratios), max(ratios)),
                "best_ratio": min(s["seconds"] for s in sealed) / min(p["seconds"] for p in plain),
                "cpu_ratio": statistics.median(map(cpu, sealed)) / statistics.median(map(cpu, plain)),
            }
            if name == "opens":
                row["first_open_us"] = [
                    statistics.median(r["first_pass"] for r in x) / x[0]["work"] * 1e6
                    for x in (plain, sealed)]
            rows.append(row)
    return rows


def seconds(low_median_high):
    low, median, high = low_median_high
    return "%.3f (%.3f to %.3f)" % (median, low, high)


def measured(row):
    """The columns of the encrypted run; a run of plain SQLite alone has none."""
    if row["mode"] == "plain":
        return [""] * 5
    return [seconds(row["seconds"]), "%.2f" % row["ratio"], "%.2f to %.2f" % row["ratio_spread"],
            "%.2f" % row["best_ratio"], "%.2f" % row["cpu_ratio"]]


def grid(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |"
            for row in rows[:1] + [["-" * w for w in widths]] + rows[1:]]


def ratios_table(a, rows, text_of):
    """Workloads down, modes across: for a run with peers."""
    modes = [m for m in a.modes if a.modes[m].base]
    cell = {(r["workload"], r["mode"]): text_of(r) for r in rows}
    body = [["workload"] + [a.modes[m].title for m in modes]]
    body += [[next(w[2] for w in WORKLOADS if w[0] == n)] + [cell[n, m] for m in modes] for n in a.chosen]
    return grid(body)


def table(a, facts, rows):
    own = [r for r in rows if r["mode"] == "plain" or a.modes[r["mode"]].ext]
    many = len({r["mode"] for r in own}) > 1
    head = ["workload"] + (["build"] if many else []) + [
        "plain, s", "tde, s", "ratio", "ratio, min to max", "best to best", "CPU ratio",
        "target"]
    body = []
    for r in own:
        body.append([r["title"]] + ([r["mode"]] if many else []) + [
            seconds(r["plain_seconds"])] + measured(r) + ["%.2f" % r["target"] if r["target"] else ""])
    out = ["%s; %d CPUs; Linux %s; SQLite %s; OpenSSL: %s. Databases on %s, where writing 4 KiB with"
           " fdatasync takes %d µs. Medians of %d rounds (min to max), scale %g, %s."
           % (facts["cpu"], facts["cpus"], facts["kernel"], facts["sqlite"],
              facts.get("openssl", "not loaded"), facts["file_system"], facts["fdatasync_us"],
              facts["rounds"], facts["scale"], facts["date"]), ""]
    for mode, version in facts.get("tde_version", {}).items():
        out += ["tde_version() of %s: `%s`" % (mode, version if isinstance(version, str)
                                                else json.dumps(version)), ""]
    out += grid([head] + body)
    for r in own:
        if "first_open_us" in r and r["mode"] != "plain":
            out += ["", "First open of a database in a process (its DEK is unwrapped by the instance's"
                    " service-managed RSA key): %d µs with %s, %d µs plain."
                    % (r["first_open_us"][1], r["mode"], r["first_open_us"][0])]
    if facts.get("peers"):
        out += ["", "Each against its own library without a key: ratio of the medians (min to max of the"
                " rounds' ratios). " + "; ".join("%s: %s" % (a.modes[m].title, v) for m, v in
                                                  facts["peers"].items() if a.modes[m].base) + ".", ""]
        out += ratios_table(a, rows, lambda r: "%.2f (%.2f to %.2f)" % ((r["ratio"],) + r["ratio_spread"]))
        out += ["", "The same of CPU time, user and system, which the machine's other work disturbs less:", ""]
        out += ratios_table(a, rows, lambda r: "%.2f" % r["cpu_ratio"])
    return "\n".join(out) + "\n"


def update_docs(text, part="results"):
    """Puts text between the README's markers of that part."""
    path, begin, end = os.path.join(HERE, "README.md"), "<!-- %s: begin -->" % part, "<!-- %s: end -->" % part
    with open(path, encoding="utf-8") as f:
        doc = f.read()
    before, found, rest = doc.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit("run.py: README.md has lost its markers of %s" % part)
    with open(path, "w", encoding="utf-8") as f:
        f.write(before + begin + "\n" + text + end + after)


def smoke(bench):
    """Each workload in each mode, and the proof that a run on the wrong file yields no time."""
    passed = failed = 0
    cases = [(n, m, m, True) for n in bench.a.chosen for m in bench.a.modes]
    modes = bench.a.modes
    cases += [(n, m, other, False) for n, _ in PREPARED if n in bench.a.chosen
              for m in modes for other in modes if (modes[m].base is None) != (modes[other].base is None)]
    for name, mode, db_mode, want in cases:
        try:
            bench.work(mode, name, db_mode=db_mode)
            got = True
        except SystemExit:
            got = False
        if got == want:
            passed += 1
        else:
            failed += 1
            print("FAILED: %s in mode %s on a database of mode %s %s"
                  % (name, mode, db_mode, "gave no result" if want else "gave a result"))
    print("%d passed, %d failed, 0 skipped" % (passed, failed))
    return 1 if failed else 0


def main():
    a = arguments()
    bench = Bench(a)
    os.makedirs(a.dir, exist_ok=True)
    bench.prepare()
    if a.smoke:
        sys.exit(smoke(bench))
    facts = machine_facts(bench)
    runs = bench.rounds()
    rows = summarise(a, facts, runs)
    text = table(a, facts, rows)
    out = os.path.join(a.build, "bench")
    with open(os.path.join(out, "results.json"), "w", encoding="utf-8") as f:
        json.dump({"facts": facts, "rows": rows, "runs": runs}, f, indent=1)
    with open(os.path.join(out, "results.txt"), "w", encoding="utf-8") as f:
        f.write(text)
    print(text, end="")
    drawn = chart.ratios(os.path.join(out, "ratios.svg"), [(w[0], w[2]) for w in WORKLOADS if w[0] in a.chosen],
                         [(m, a.modes[m].title) for m in a.modes if a.modes[m].base], rows)
    if not drawn:
        print("run.py: no chart: gnuplot is not installed", file=sys.stderr)
    for mode in a.modes:
        shutil.rmtree(bench.folder(mode), ignore_errors=True)
    if a.update_docs:
        update_docs(text)
        if drawn:
            shutil.copy(os.path.join(out, "ratios.svg"), os.path.join(HERE, "ratios.svg"))


if __name__ == "__main__":
    main()
