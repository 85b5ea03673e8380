#!/usr/bin/env python3
"""callgrind.py: instruction counts of the workloads, against those that are checked in.

Counts are repeatable where times are not. Two of each workload, of its timed part:
"own", the instructions of the extension itself, which depend on the compiler, and "all",
those of the process, which depend on SQLite and the C library as well. Counts are kept by
AES-GCM engine, which the CPU decides. What was counted with another compiler, other
libraries or another engine is not compared: that is said, and counts as skipped.

    callgrind.py --build build [--tolerance 3] [--update]

More than the tolerance above the count that is checked in fails; so does more than that
below it: then the improvement is to be checked in.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
STORED = os.path.join(HERE, "callgrind.json")
# name, scale. speedtest1 is taken whole, its start included.
WORKLOADS = [("speedtest1", 0.02), ("speedtest1-wal", 0.02), ("scan", 0.02), ("point", 0.02), ("commits", 0.05),
             ("bulk", 0.01), ("opens", 0.1)]


def first_line(*cmd):
    r = subprocess.run(cmd, stdout=subprocess.PIPE, text=True, check=True)
    return r.stdout.splitlines()[0].strip()


def facts(program, ext, env):
    r = subprocess.run([program, "facts", "--ext", ext], env=env, stdout=subprocess.PIPE, text=True, check=True)
    f = json.loads(r.stdout)
    version = f["tde"] if isinstance(f["tde"], dict) else json.loads(f["tde"])
    # (Without the name that it was called by: cc and gcc are one.)
    return {"compiler": first_line(os.environ.get("CC", "cc"), "--version").split(" ", 1)[-1], "sqlite": f["sqlite"],
            "openssl": f["openssl"], "engine": version["engine"], "libc": first_line("getconf", "GNU_LIBC_VERSION"),
            "valgrind": first_line("valgrind", "--version")}


def counts(path, own_name):
    """Sums self costs by object: lines after calls= hold a callee's cost and are left out."""
    names, own, total, current, skip = {}, 0, 0, "", False
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            if line.startswith("ob="):
                m = re.match(r"ob=\((\d+)\)(?: (.*))?", line)
                if m.group(2):
                    names[m.group(1)] = m.group(2)
                current = names[m.group(1)]
            elif line.startswith("cob="):
                m = re.match(r"cob=\((\d+)\)(?: (.*))?", line)
                if m.group(2):
                    names[m.group(1)] = m.group(2)
            elif line.startswith("calls="):
                skip = True
            elif line[:1] in "0123456789+-*":
                if not skip:
                    cost = int(line.split()[1])
                    total += cost
                    if current.endswith(own_name):
                        own += cost
                skip = False
    return {"own": own, "all": total}


def measure(a, env):
    program, ext = os.path.join(a.build, "bench", "workloads"), os.path.abspath(os.path.join(a.build, "tde.so"))
    got = {"facts": facts(program, ext, env), "counts": {}}
    # The instance's key pair is made here: how long that takes is chance.
    subprocess.run([program, "scan", "--db", os.path.join(a.dir, "first.db"), "--scale", "0.001", "--ext", ext,
                    "--prepare"], env=env, check=True)
    for name, scale in WORKLOADS:
        db, out = os.path.join(a.dir, name + ".db"), os.path.join(a.dir, name + ".out")
        args = [program, name, "--db", db, "--scale", repr(scale), "--ext", ext]
        subprocess.run(args + ["--prepare"], env=env, check=True)
        whole = "yes" if name.startswith("speedtest1") else "no"
        r = subprocess.run(["valgrind", "--tool=callgrind", "--instr-atstart=" + whole,
                            "--callgrind-out-file=" + out] + args, env=env, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, check=False)
        if r.returncode != 0:
            sys.exit("callgrind.py: %s failed:\n%s" % (name, r.stdout[-2000:]))
        got["counts"][name] = counts(out, "/tde.so")
        print("%-15s own %11d  all %12d" % (name, got["counts"][name]["own"], got["counts"][name]["all"]))
    return got


def compare(got, all_stored, tolerance):
    """Against the counts of the same engine: another's glue is other code."""
    passed = failed = skipped = 0
    engine = got["facts"]["engine"]
    if engine not in all_stored:
        print("not compared: no counts of the engine %s are checked in (there are: %s)" % (
            engine, ", ".join(all_stored)))
        return 0, 0, 2 * len(got["counts"])
    stored = all_stored[engine]
    same = {k: got["facts"][k] == stored["facts"][k] for k in got["facts"]}
    for kind, needs in (("own", ("compiler", "valgrind")), ("all", tuple(same))):
        other = [k for k in needs if not same[k]]
        if other:
            print("not compared: %s (other %s than when it was checked in)" % (kind, ", ".join(other)))
            skipped += len(got["counts"])
            continue
        for name, c in got["counts"].items():
            change = 100.0 * c[kind] / stored["counts"][name][kind] - 100
            if abs(change) <= tolerance:
                passed += 1
                continue
            failed += 1
            print("FAILED: %s, %s: %d instructions, %+.1f %% against %d. %s" % (
                name, kind, c[kind], change, stored["counts"][name][kind],
                "make profile WORKLOAD=%s shows where" % name if change > 0
                else "Check the improvement in: make bench-callgrind CALLGRIND_ARGS=--update"))
    return passed, failed, skipped


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--build", default="build")
    p.add_argument("--tolerance", type=float, default=3.0, help="per cent")
    p.add_argument("--update", action="store_true", help="check these counts in")
    a = p.parse_args()
    if not shutil.which("valgrind"):
        print("valgrind is not installed\n0 passed, 0 failed, 1 skipped")
        return 0
    a.dir = os.path.abspath(os.path.join(a.build, "bench", "callgrind"))
    shutil.rmtree(a.dir, ignore_errors=True)
    os.makedirs(a.dir)
    got = measure(a, dict(os.environ, TDE_INSTANCE=os.path.join(a.dir, "instance.json"), SQLITE_TMPDIR=a.dir))
    with open(STORED, encoding="utf-8") as f:
        stored = json.load(f)
    if a.update:
        stored[got["facts"]["engine"]] = got
        with open(STORED, "w", encoding="utf-8") as f:
            json.dump(stored, f, indent=1)
            f.write("\n")
        print("checked in: " + os.path.relpath(STORED))
        return 0
    passed, failed, skipped = compare(got, stored, a.tolerance)
    print("%d passed, %d failed, %d skipped" % (passed, failed, skipped))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
