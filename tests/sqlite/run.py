#!/usr/bin/env python3
"""Runs SQLite's own test suite through the shim and judges each check.

Every test file runs in a process and a scratch folder of its own, first in the
plain test program (once: the outcome is kept beside the program), then in the
one with the shim as default VFS. A check that fails in plain too says nothing
about the shim; any other failure must be named in expected.txt with a reason
why it cannot apply.

What must hold, so that a green run means something:
 - a file that crashes, hangs, aborts, leaks or runs fewer checks than in plain
   is a failure, not an absence;
 - expected.txt holds no line without a reason, none that plain fails too, and
   in a full run none that did not fail;
 - a failure that a second run does not repeat is told, not hidden.
"""

import argparse
import concurrent.futures
import fnmatch
import hashlib
import json
import os
import pwd
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
FULL = ["veryquick", "wal", "journaltest", "inmemory_journal", "pcache*",
        "persistent_journal", "truncate_journal", "memsubsys*", "multithread",
        "autovacuum_crash"]
# Of all other files those that are about I/O, recovery, races and failing allocations:
# veryquick leaves them out because they are slow.
SLOW = ["crash*", "walcrash*", "writecrash*", "backup*", "savepoint[46]*", "trans2*", "vacuum3*",
        "*ioerr*", "*fault*", "*malloc*", "wal*", "autovacuum_*", "mmap4*", "thread*", "shared_err*",
        "incrvacuum_*", "async*", "corruptC*", "btree8*", "delete3*", "securedel2*"]
USER = "nobody"

# What can go wrong with a whole file, named as if it were a check.
CRASH, TIMEOUT, ABORTED, LEAK, FEWER = "<crash>", "<timeout>", "<aborted>", "<leak>", "<fewer-checks>"


def plain_folder(prefix, parent):
    """A new folder; chance puts no "_" into its name, with which vtabH.test leaves checks out."""
    while True:
        folder = tempfile.mkdtemp(prefix=prefix, dir=parent)
        if "_" not in os.path.basename(folder)[len(prefix):]:
            return folder
        os.rmdir(folder)


class SuiteError(Exception):
    """A run that cannot be judged."""


class Place:
    """Where programs, scripts and scratch folders are, and who runs them.

    A run works on copies of the programs and scripts, so that a build or an
    edit meanwhile does not change what it measures, and on a folder of its own,
    so that runs may overlap."""

    def __init__(self, args):
        self.out = os.path.abspath(args.out)
        self.tree = os.path.abspath(args.source)
        self.logs = os.path.join(self.out, "log")
        self.user = pwd.getpwnam(USER) if os.geteuid() == 0 else None
        os.makedirs(self.logs, exist_ok=True)
        self.work = plain_folder("run-", self.out)
        os.chmod(self.work, 0o755)
        if self.user and not self.reachable():
            self.move_away()
        self.here = shutil.copytree(HERE, os.path.join(self.work, "here"))
        for build in ("plain", "tde"):
            path = os.path.join(self.out, build)
            if os.path.isdir(path):
                shutil.copytree(path, os.path.join(self.work, build))
        self.scratch = os.path.join(self.work, "scratch")
        self.data = os.path.join(self.work, "data")
        for path in (self.scratch, self.data):
            os.mkdir(path)
            self.give(path)

    def give(self, path):
        if self.user:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def as_user(self):
        """Popen's arguments: the suite refuses to run as root."""
        if not self.user:
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def reachable(self):
        """Whether the unprivileged user may enter the source and the run's folder."""
        return all(subprocess.run(["test", "-r", p], cwd="/", check=False,
                                  **self.as_user()).returncode == 0
                   for p in (os.path.join(self.tree, "test", "tester.tcl"), self.work))

    def move_away(self):
        """A checkout under a private folder: everything is copied out of it."""
        os.rmdir(self.work)
        self.work = tempfile.mkdtemp(prefix="sqlite-suite-")
        os.chmod(self.work, 0o755)
        for sub in ("test", "ext"):
            shutil.copytree(os.path.join(self.tree, sub), os.path.join(self.work, "tree", sub))
        self.tree = os.path.join(self.work, "tree")

    def program(self, build, name="testfixture"):
        return os.path.join(self.work, build, name)

    def close(self):
        shutil.rmtree(self.work, ignore_errors=True)

    def environment(self, build):
        env = {k: v for k, v in os.environ.items()
               if not k.startswith(("TDE_", "SQLITE_", "QUICKTEST_", "TEST_"))}
        env["HOME"] = self.data
        if build == "tde":
            env["TDE_INSTANCE"] = os.path.join(self.data, "instance")
            env["SQLITE_SUITE_PRELUDE"] = os.path.join(self.here, "prelude.tcl")
        return env


def limits():
    # The test program raises its core limit to what is allowed.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def tcl_list(text):
    """The elements of a Tcl list, as far as test names need it."""
    out, i = [], 0
    while i < len(text):
        if text[i].isspace():
            i += 1
            continue
        if text[i] == "{":
            depth, start = 1, i + 1
            i += 1
            while i < len(text) and depth:
                depth += {"{": 1, "}": -1}.get(text[i], 0)
                i += 1
            out.append(text[start:i - 1])
            continue
        word = ""
        while i < len(text) and not text[i].isspace():
            if text[i] == "\\" and i + 1 < len(text):
                i += 1
            word += text[i]
            i += 1
        out.append(word)
    return out


def parse_output(perm, text, code):
    """What one test process said: checks run, and the names that failed."""
    result = {"checks": 0, "fails": [], "seconds": 0}
    summary = re.findall(r"^(\d+) errors out of (\d+) tests", text, re.M)
    failures = re.findall(r"^!Failures on these tests: (.*)$", text, re.M)
    if summary:
        result["checks"] = int(summary[-1][1])
    names = tcl_list(failures[-1]) if failures else re.findall(r"^! (\S+) expected: ", text, re.M)
    prefix = perm + "."
    names = [n[len(prefix):] if n.startswith(prefix) else n for n in names]
    if code is None:
        names.append(TIMEOUT)
    elif code < 0:
        names.append(CRASH)
    elif not summary:
        names.append(ABORTED)
    if re.search(r"^Unfreed memory: \d+ bytes", text, re.M):
        names.append(LEAK)
    result["fails"] = sorted(set(names))
    return result


def stop_group(process):
    """Ends the test process and what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run_file(place, build, perm, path, limit):
    """Runs one test file; returns parse_output's dictionary."""
    name = f"{perm}-{os.path.basename(path)}"
    scratch = plain_folder(name + "-", place.scratch)
    place.give(scratch)
    os.symlink(place.program(build, "sqlite3"), os.path.join(scratch, "sqlite3"))
    log = os.path.join(place.logs, build, name + ".log")
    os.makedirs(os.path.dirname(log), exist_ok=True)
    cmd = [place.program(build), os.path.join(place.here, "suite.tcl"), "run",
           os.path.join(place.tree, "test"), perm, path]
    started = time.monotonic()
    with open(log, "wb") as out:
        process = subprocess.Popen(cmd, cwd=scratch, stdout=out, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, start_new_session=True,
                                   env=place.environment(build), preexec_fn=limits,
                                   **place.as_user())
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        stop_group(process)
        process.wait()
    with open(log, encoding="utf-8", errors="replace") as f:
        result = parse_output(perm, f.read(), code)
    result["seconds"] = round(time.monotonic() - started, 2)
    shutil.rmtree(scratch, ignore_errors=True)
    return result


def list_files(place, permutations):
    """(permutation, path) of every test file, by SQLite's own lists."""
    cwd = plain_folder("", place.scratch)
    place.give(cwd)
    run = subprocess.run([place.program("plain"), os.path.join(place.here, "suite.tcl"), "list",
                          os.path.join(place.tree, "test"), *permutations],
                         cwd=cwd, capture_output=True, text=True, check=False,
                         env=place.environment("plain"), **place.as_user())
    if run.returncode != 0 or not run.stdout:
        raise SuiteError("the test program cannot list its tests: " + run.stderr.strip())
    pairs = [tuple(line.split("\t")) for line in run.stdout.splitlines() if "\t" in line]
    return sorted(set(pairs))


def list_suite(place, permutations):
    """The tests of a run: the permutations named, or the full set."""
    if permutations:
        return list_files(place, permutations)
    tests = list_files(place, FULL)
    quick = {path for perm, path in tests if perm == "veryquick"}
    slow = [(perm, path) for perm, path in list_files(place, ["full"]) if path not in quick and
            any(fnmatch.fnmatch(os.path.basename(path), g + ".test") for g in SLOW)]
    return tests + slow


def key_of(perm, path):
    return f"{perm}/{os.path.basename(path)}"


def digest(*paths):
    h = hashlib.sha256()
    for p in paths:
        with open(p, "rb") as f:
            h.update(f.read())
    return h.hexdigest()


class Baseline:
    """The plain program's outcomes, kept as long as what it is built from is."""

    def __init__(self, place):
        stamp = digest(os.path.join(place.out, "version"), os.path.join(place.out, "sqlite3.c"),
                       os.path.join(place.here, "fixture.mk"),
                       os.path.join(place.here, "suite.tcl"))
        self.path = os.path.join(place.out, "baseline.jsonl")
        self.lock = threading.Lock()
        self.outcomes = {}
        if os.path.exists(self.path):
            with open(self.path, encoding="utf-8") as f:
                lines = f.read().splitlines()
            logs = os.path.isdir(os.path.join(place.logs, "plain"))
            if lines and logs and json.loads(lines[0]).get("stamp") == stamp:
                for line in lines[1:]:
                    entry = json.loads(line)
                    self.outcomes[entry["key"]] = entry
                return
        with open(self.path, "w", encoding="utf-8") as f:
            f.write(json.dumps({"stamp": stamp}) + "\n")

    def add(self, key, result):
        with self.lock:
            self.outcomes[key] = result
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(json.dumps({"key": key, **result}) + "\n")


def each_of(check):
    """Names like x-1.[1..3] stand for x-1.1, x-1.2 and x-1.3: each must fail."""
    m = re.fullmatch(r"(.*)\[(\d+)\.\.(\d+)\](.*)", check)
    if not m:
        return [check]
    return [f"{m.group(1)}{i}{m.group(4)}" for i in range(int(m.group(2)), int(m.group(3)) + 1)]


def read_expected(path):
    """{(permutation/file, check): reason}. A bad line stops the run."""
    expected = {}
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            if not line.strip() or line.startswith("#"):
                continue
            fields = [x.strip() for x in line.split("|", 2)]
            where = f"{os.path.basename(path)}:{number}"
            if len(fields) != 3 or not all(fields):
                raise SuiteError(f"{where}: permutation/file | check | reason, all three, are needed")
            if "/" not in fields[0]:
                raise SuiteError(f"{where}: the first field is permutation/file")
            for check in each_of(fields[1]):
                if (fields[0], check) in expected:
                    raise SuiteError(f"{where}: {check} is named twice")
                expected[fields[0], check] = fields[2]
    return expected


def expected_key(expected, key, check):
    """The line that names this failure: exact, or for any permutation."""
    for k in ((key, check), ("*/" + key.split("/", 1)[1], check)):
        if k in expected:
            return k
    return None


def run_all(place, build, todo, jobs, limit_of, done):
    """Runs (perm, path) pairs side by side, calling done(pair, result)."""
    total, count = len(todo), 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run_file, place, build, p, f, limit_of(p, f)): (p, f)
                   for p, f in todo}
        for future in concurrent.futures.as_completed(futures):
            done(futures[future], future.result())
            count += 1
            if count % 100 == 0:
                print(f"  {build}: {count} of {total} files", flush=True)


def steps_run(place, build, key):
    """The checks that a file's log names. Loops that inject an error into each
    I/O or allocation in turn, until none is left, number their checks: those
    numbers are left out, for another layer below needs other numbers."""
    path = os.path.join(place.logs, build, key.replace("/", "-") + ".log")
    with open(path, encoding="utf-8", errors="replace") as f:
        names = re.findall(r"^(\S[^\n]*?)\.\.\.", f.read(), re.M)
    counter = re.compile(r"-(transient|persistent|oom|ioerr|full|cantopen|shmerr|interrupt)\.\d+")
    return {counter.sub(r"-\1.", n) for n in names}


def failures_of(place, key, result, plain):
    """The checks that fail here and not in plain."""
    fails = [c for c in result["fails"] if c not in plain["fails"]]
    whole = {CRASH, TIMEOUT, ABORTED} & set(result["fails"] + plain["fails"])
    if not whole and result["checks"] < plain["checks"]:
        if steps_run(place, "plain", key) - steps_run(place, "tde", key):
            fails.append(FEWER)
    return fails


def make_instance(place):
    """The key material all processes share is made before they start."""
    script = os.path.join(place.scratch, "first.tcl")
    with open(script, "w", encoding="utf-8") as f:
        f.write("sqlite3 db first.db\ndb eval {CREATE TABLE t(x); INSERT INTO t VALUES('secret-text')}\n"
                "db close\nset f [::suite::open_raw first.db rb]\nset raw [read $f]\n"
                "if {[string match {SQLite format 3*} $raw] || [string match *secret-text* $raw]} {\n"
                "  puts {the shim is not the default VFS}\n  exit 1\n}\n"
                "if {[tde_logical kind first.db] ne {main}} {\n"
                "  puts {no logical view of the database}\n  exit 1\n}\nexit 0\n")
    os.chmod(script, 0o644)
    run = subprocess.run([place.program("tde"), script], cwd=place.scratch, capture_output=True,
                         text=True, env=place.environment("tde"), check=False, timeout=120,
                         **place.as_user())
    if run.returncode != 0:
        raise SuiteError("an encrypted database cannot be made: " +
                         (run.stdout + run.stderr).strip())


def judge(place, tests, outcomes, baseline, expected):
    """Sorts every failure into expected and unexplained."""
    verdict = {"files": 0, "ok": 0, "expected": 0, "plain": 0, "unexplained": [], "used": set()}
    for perm, path in tests:
        key = key_of(perm, path)
        result, plain = outcomes[key], baseline.outcomes[key]
        fails = failures_of(place, key, result, plain)
        verdict["files"] += 1
        verdict["plain"] += len(plain["fails"])
        verdict["ok"] += max(0, result["checks"] - len(result["fails"]))
        for check in fails:
            line = expected_key(expected, key, check)
            if line:
                verdict["expected"] += 1
                verdict["used"].add(line)
            else:
                verdict["unexplained"].append((key, check))
    return verdict


def refuse_plain_failures(expected, baseline):
    """A line that plain fails too explains nothing about the shim."""
    for (where, check) in expected:
        perm, name = where.split("/", 1)
        for key, plain in baseline.outcomes.items():
            if check in plain["fails"] and (key == where or
                                            (perm == "*" and key.split("/", 1)[1] == name)):
                raise SuiteError(f"expected.txt: {where} | {check}: fails in plain SQLite, too ({key})")


def rerun_failures(place, tests, outcomes, baseline, expected, limit_of):
    """A second run of each file with an unexplained failure, alone. Returns
    what did not repeat."""
    vanished = []
    for perm, path in tests:
        key = key_of(perm, path)
        first = {c for c in failures_of(place, key, outcomes[key], baseline.outcomes[key])
                 if not expected_key(expected, key, c)}
        if not first:
            continue
        again = run_file(place, "tde", perm, path, limit_of(perm, path))
        second = set(failures_of(place, key, again, baseline.outcomes[key]))
        if not {c for c in second if not expected_key(expected, key, c)}:
            vanished += [(key, c) for c in sorted(first)]
            outcomes[key] = again
    return vanished


def select(tests, args):
    if args.smoke:
        with open(os.path.join(HERE, "smoke.txt"), encoding="utf-8") as f:
            names = {line.strip() for line in f if line.strip() and not line.startswith("#")}
        found = [t for t in tests if key_of(*t) in names]
        missing = names - {key_of(*t) for t in found}
        if missing:
            raise SuiteError("smoke.txt names files that are not run: " + ", ".join(sorted(missing)))
        return found
    if args.only:
        return [t for t in tests if any(fnmatch.fnmatch(key_of(*t), pattern) or
                                        fnmatch.fnmatch(os.path.basename(t[1]), pattern)
                                        for pattern in args.only)]
    return tests


def report(verdict, vanished, stale):
    print(f"files {verdict['files']}, checks ok {verdict['ok']}, expected {verdict['expected']}, "
          f"failing in plain too {verdict['plain']}, unexplained {len(verdict['unexplained'])}, "
          f"not repeated {len(vanished)}")
    for key, check in vanished:
        print(f"  failed once, passed on the second run: {key} | {check}")
    for key, check in verdict["unexplained"]:
        print(f"  UNEXPLAINED {key} | {check}")
    for where, check in stale:
        print(f"  STALE expected.txt: {where} | {check}: did not fail")
    print(f"{verdict['ok']} passed, {len(verdict['unexplained']) + len(stale)} failed, "
          f"{verdict['expected']} skipped")


def measure_plain(place, tests, baseline, args):
    todo = [t for t in tests if key_of(*t) not in baseline.outcomes]
    if todo:
        print(f"plain: {len(todo)} files to measure", flush=True)
        run_all(place, "plain", todo, args.jobs, lambda p, f: args.timeout,
                lambda t, r: baseline.add(key_of(*t), r))


def run_encrypted(place, tests, baseline, expected, args):
    """Runs the encrypting build; returns the outcomes and what did not repeat."""
    outcomes = {}

    def limit_of(perm, path):
        return max(300, min(args.timeout * 2, 20 * baseline.outcomes[key_of(perm, path)]["seconds"]))

    make_instance(place)
    # The long ones first, so that the last one does not run alone.
    order = sorted(tests, key=lambda t: -baseline.outcomes[key_of(*t)]["seconds"])
    run_all(place, "tde", order, args.jobs, limit_of,
            lambda t, r: outcomes.__setitem__(key_of(*t), r))
    vanished = rerun_failures(place, tests, outcomes, baseline, expected, limit_of)
    with open(os.path.join(place.out, "results.json"), "w", encoding="utf-8") as f:
        json.dump(outcomes, f, indent=1, sort_keys=True)
    return outcomes, vanished


def suite(place, args):
    expected = read_expected(os.path.join(HERE, args.expected))
    tests = select(list_suite(place, args.permutations), args)
    if not tests:
        raise SuiteError("no test file matches")
    baseline = Baseline(place)
    measure_plain(place, tests, baseline, args)
    if args.plain_only:
        fails = sorted((key_of(*t), c) for t in tests for c in baseline.outcomes[key_of(*t)]["fails"])
        checks = sum(baseline.outcomes[key_of(*t)]["checks"] for t in tests)
        print(f"plain: files {len(tests)}, checks {checks}, failing {len(fails)}")
        for key, check in fails:
            print(f"  plain fails {key} | {check}")
        return 0
    refuse_plain_failures(expected, baseline)
    outcomes, vanished = run_encrypted(place, tests, baseline, expected, args)
    verdict = judge(place, tests, outcomes, baseline, expected)
    complete = not (args.smoke or args.only or args.permutations)
    stale = sorted(line for line in set(expected) - verdict["used"]
                   if not expected[line].startswith("varies:")) if complete else []
    report(verdict, vanished, stale)
    return 1 if verdict["unexplained"] or stale else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--source", required=True, help="SQLite's source tree")
    parser.add_argument("--out", required=True, help="folder with plain/ and tde/")
    parser.add_argument("--expected", default="expected.txt")
    parser.add_argument("--smoke", action="store_true", help="the files of smoke.txt alone")
    parser.add_argument("--only", action="append", metavar="GLOB", help="FILE or PERMUTATION/FILE")
    parser.add_argument("--permutations", action="append", metavar="NAME")
    parser.add_argument("--plain-only", action="store_true", help="measure plain, judge nothing")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=900, help="seconds a file")
    args = parser.parse_args()
    place = None
    try:
        place = Place(args)
        return suite(place, args)
    except (SuiteError, OSError) as e:
        print(f"SQLite's suite: {e}", file=sys.stderr)
        return 2
    finally:
        if place:
            place.close()


if __name__ == "__main__":
    sys.exit(main())
