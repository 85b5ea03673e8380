#!/usr/bin/env python3
"""Breaks the shim in known ways and demands that the tests of this folder notice.

Each mutant is the product with one text replaced, in a copy of the sources; a
harness program built from it must fail. A text that is not found exactly once
is an error: the mutant has to be brought up to date with the code.

A command that begins with "locks:" is run in a build whose lock bytes are at 128 KiB (crash.mk,
check-crash-locks); a program "unit/..." is a unit test.

usage: mutants.py [--keep] [name ...]
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FOLDERS = ["ext", "vfs", "keyprovider", "sql", "tests"]

# name, file, old, new, the command that must fail (first word: the program)
MUTANTS = [
    ("journal-after-database", "vfs/hooks.c",
     "return j && !j->plain && tde_sealed_pending(&j->s) ? tde_sealed_flush(&j->s) : SQLITE_OK;",
     "return j ? SQLITE_OK : SQLITE_OK;",
     "kill -c 3 -n 200"),
    ("no-flush-at-commit", "vfs/mainfile.c",
     "      rc = main_flush(f);\n      if (rc == SQLITE_OK && op == SQLITE_FCNTL_SYNC)",
     "      rc = SQLITE_OK;\n      if (rc == SQLITE_OK && op == SQLITE_FCNTL_SYNC)",
     "crash -s death-delete -n 300 -m tde"),
    ("guard-not-synced", "vfs/guard.c",
     "  if (rc == SQLITE_OK) {\n    rc = LOWER(f)->xSync(f->lower, SQLITE_SYNC_NORMAL);\n"
     "    db->counters.lower_syncs++;\n  }\n  if (rc == SQLITE_OK) db->guard_next",
     "  if (rc == SQLITE_OK) db->guard_next",
     "crash -s small-pages -n 400 -m tde"),
    ("no-guard", "vfs/guard.c",
     "  if (n + 8 > TDE_GUARD_BYTES) return SQLITE_INTERNAL;",
     "  if (n + 8 > 8) return SQLITE_OK;",
     "crash -s small-pages -n 200 -m tde"),
    ("frames-committed-before-flush", "vfs/wal.c",
     "    if (commits) rc = tde_sealed_flush(&f->s);",
     "    if (commits) rc = tde_sealed_settle(&f->s);",
     "race -s write -w wal -m r"),
    ("free-pages-not-healed", "vfs/heal.c",
     "  if (!is_due(f)) return SQLITE_OK;",
     "  if (!is_due(f) || f) return SQLITE_OK;",
     "crash -s delete -n 300 -m tde"),
    ("slot-not-synced", "vfs/slots.c",
     "  if (rc == SQLITE_OK && verify) {\n    rc = LOWER(f)->xSync(f->lower, SQLITE_SYNC_NORMAL);",
     "  if (rc == SQLITE_OK && verify) {\n    rc = SQLITE_OK;",
     "crash -s header --sweep -n 2 -m tde"),
    ("same-slot-twice", "vfs/database_edit.c",
     "  int slot = !db->header.slot, rc;",
     "  int slot = db->header.slot, rc;",
     "crash -s header --sweep -n 2 -m tde"),
    ("nomem-from-io", "vfs/methods.h",
     "      return SQLITE_IOERR_NOMEM;",
     "      return SQLITE_NOMEM;",
     "faults -s write -f sqlite-malloc"),
    ("oom-reads-as-empty-log", "vfs/logfile.c",
     "  if (c == TDE_WRONG_KEY) {\n    tde_log(",
     "  if (c) {\n    tde_log(",
     "faults -s recover -f base-alloc"),
    ("old-epoch-logs-come-back", "sql/rotate_dek.c",
     "    if (rc == SQLITE_OK) rc = settle(&r, &st);\n", "    (void)settle;\n",
     "crash -s dek-wal -n 200 -m tde"),
    ("torn-by-a-checkpoint", "vfs/reseal.c",
     "  if (c == TDE_TAMPERED && tde_wal_has_unit(f, i)) return SQLITE_OK;\n", "",
     "crash -s turns-dek-torn -n 1600 -m tde"),
    ("no-log-before-records", "vfs/redo.c",
     "  rc = r->lower->pMethods->xWrite(r->lower, head, sizeof(head), 0);\n",
     "  rc = SQLITE_OK;\n",
     "crash -s secondary -n 400 -m tde"),
    ("copy-loses-a-write", "vfs/replica.c",
     "  t->nrun = 0;\n  return t->failed;\n",
     "  int rc = t->failed;\n  t->nrun = 0;\n  t->failed = 0;\n  return rc;\n",
     "faults -s backup -f full"),
    ("backup-not-synced", "vfs/replica.c",
     "  if (rc == SQLITE_OK) rc = write_header(t);\n"
     "  if (rc == SQLITE_OK) rc = t->lower->pMethods->xSync(t->lower, SQLITE_SYNC_FULL);\n",
     "  if (rc == SQLITE_OK) rc = write_header(t);\n",
     "crash -s backup -n 200 -m tde"),
    ("statement-stays", "sql/rawcopy.c",
     "    rc = sqlite3_finalize(s->hold);\n    s->hold = NULL;\n  }\n  return rc;",
     "    rc = sqlite3_reset(s->hold);\n  }\n  return rc;",
     "faults -s backup -f read"),
    ("measured-too-early", "vfs/snapshot.c",
     "  if (f->db->index) {\n    rc = take_wal(s);\n  } else if (!settled) {\n"
     "    rc = no_frames(f);\n  }\n  if (rc == SQLITE_OK) rc = measure(s);\n",
     "  rc = measure(s);\n  if (rc == SQLITE_OK && f->db->index) {\n    rc = take_wal(s);\n"
     "  } else if (rc == SQLITE_OK && !settled) {\n    rc = no_frames(f);\n  }\n",
     "race -s backup -w wal -m c.P"),
    ("hot-journal-passed-over", "vfs/reserve.c",
     "    rc = hot ? SQLITE_BUSY_RECOVERY :", "    rc = hot < 0 ? SQLITE_BUSY_RECOVERY :",
     "race -s protector -w delete -m x.r"),
    ("ends-another-rotation", "sql/rotate_dek.c",
     "  return tde_keydoc_regenerating(doc) && tde_keydoc_epoch(doc) == r->epoch;",
     "  return r && tde_keydoc_regenerating(doc);",
     "race -s dek -c 6 -m gh"),
    ("key-of-another-copy", "vfs/keyring_unlock.c",
     "  if (!tde_entry_verifies(k, 1, h, facts)) return;\n  for (int i = 0; i < facts->nepochs; i++) "
     "tde_epochs_any(&k->epochs, facts->epochs[i])->stale = 0;\n",
     "  for (int i = 0; i < facts->nepochs; i++) {\n"
     "    tde_epoch_keys *e = tde_epochs_any(&k->epochs, facts->epochs[i]);\n"
     "    if (e && e->dek && h) e->stale = 0;\n  }\n",
     "race -s dek -w delete -m dvP"),
    ("map-before-pending-units", "vfs/sealed.c",
     "    if (tde_sealed_in_run(s, i) || (s->cur_active && s->cur_index == i)) {\n      rc = read_pending",
     "    if (!s->mapped && (tde_sealed_in_run(s, i) || (s->cur_active && s->cur_index == i))) {\n"
     "      rc = read_pending",
     "crash -s maps -n 50 -m tde"),
    ("failed-page-waits", "vfs/mainfile.c",
     "  if (rc && !may_defer(f)) tde_sealed_drop(&f->s);\n", "  (void)f;\n",
     "crash -s turns-full -n 200 -m tde"),
    ("rolled-back-frames-wait", "vfs/wal.c",
     "  if (!tde_sealed_pending(&f->s) && !f->s.prefix_pending) return;\n  drop_waiting(f);",
     "  if (f) return;\n  drop_waiting(f);",
     "crash -s turns-rollback -n 200 -m tde"),
    ("rolled-back-frames-wait-after-exclusive", "vfs/mainfile.c",
     "      if (!f->db->wal_writing) tde_wal_forget(f->db->wal);\n", "",
     "crash -s turns-exclusive -i 2800 -n 2000 -m tde"),
    ("passed-over-unit-stays-empty", "vfs/sealed.c",
     "  if (c == TDE_TAMPERED && s->gap_page && record == s->scratch &&",
     "  if (c == TDE_TAMPERED && !s && record == s->scratch &&",
     "crash -s turns-small -n 800 -m tde"),
    ("reserved-not-to-be-had-beside-others", "vfs/reserve.c",
     "  return reserve_aside(f);", "  return f->lower ? rc : reserve_aside(f);",
     "crash -s turns-keys -n 80 -m tde"),
    ("reserved-is-kept", "vfs/reserve.c",
     "  if (f->db->aside) (void)tde_main_close(f->db->aside);\n", "",
     "crash -s turns-keys -n 80 -m tde"),
    ("no-locks-is-not-alone", "vfs/shim.h",
     "  return db->lock == SQLITE_LOCK_EXCLUSIVE || db->no_locks;",
     "  return db->lock == SQLITE_LOCK_EXCLUSIVE;",
     "crash -s nolock-spill -n 400 -m tde"),
    ("lock-page-not-guarded", "vfs/sealed.c",
     "      rc = put_guarded(s, s->nunits, zero_unit, s->geo.unit);\n",
     "      rc = put_unit(s, s->nunits, zero_unit, s->geo.unit);\n",
     "locks:crash -s turns-vacuum -n 600 -m tde"),
    ("lock-page-stays-empty", "vfs/sealed.c",
     "    if (lock_byte_unit(s, s->nunits)) {", "    if (lock_byte_unit(s, i)) {",
     "locks:crash -s vacuum-wal -n 400 -m tde"),
    ("silent-hosts-take-every-lane", "vfs/lanes.c",
     "  return n >= TDE_LANES_SILENT;", "  return n > TDE_LANES_SILENT;",
     "unit/test_lanes"),
    ("a-denial-waits-its-turn", "vfs/lanes.c",
     "  t = turn_to_ask(ASK_FIRST, now);\n  if (!t) t = turn_to_ask(ASK, now);",
     "  t = turn_to_ask(ASK, now);\n  if (!t) t = turn_to_ask(ASK_FIRST, now);",
     "unit/test_lanes"),
]


def make_copy(where):
    for folder in FOLDERS:
        shutil.copytree(os.path.join(ROOT, folder), os.path.join(where, folder),
                        ignore=shutil.ignore_patterns("work", "build*", "__pycache__"))
    shutil.copy(os.path.join(ROOT, "Makefile"), where)


def replace(path, old, new):
    with open(path, encoding="utf-8") as f:
        text = f.read()
    if text.count(old) != 1:
        return False
    with open(path, "w", encoding="utf-8") as f:
        f.write(text.replace(old, new))
    return True


def build(where, command):
    """The program of a command, to be run there, its arguments, and how the build went."""
    program, *args = command.split()
    flags = []
    if program.startswith("locks:"):
        program = program[6:]
        flags = ["BUILD=build/locks", "EXTRA_CFLAGS=-DTDE_HOLE_START=0x20000ull"]
    built = ("build/locks/" if flags else "build/") + ("" if "/" in program else "crash/") + program
    made = subprocess.run(["make", "-s", "-j2", built, *(flags or ["BUILD=build"])], cwd=where,
                          capture_output=True, text=True)
    return built, args, made


def attempt(where, mutant):
    """None when the mutant was caught, else what is wrong."""
    name, path, old, new, command = mutant
    full = os.path.join(where, path)
    with open(full, encoding="utf-8") as f:
        whole = f.read()
    if not replace(full, old, new):
        return "its text is not in %s exactly once" % path
    built, args, make = build(where, command)
    with open(full, "w", encoding="utf-8") as f:
        f.write(whole)
    if make.returncode:
        return "it does not build:\n" + make.stderr[-2000:]
    run = subprocess.run([os.path.join(where, built), *args], cwd=where, capture_output=True,
                         text=True, errors="replace", timeout=1800)
    print("  %s: %s" % (name, (run.stdout.strip().splitlines() or ["nothing"])[-1]), flush=True)
    return None if run.returncode else "`%s` passed" % command


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("names", nargs="*")
    opt = parser.parse_args()
    where = tempfile.mkdtemp(prefix="tde-mutants-")
    passed = failed = 0
    try:
        make_copy(where)
        for mutant in MUTANTS:
            if opt.names and mutant[0] not in opt.names:
                continue
            wrong = attempt(where, mutant)
            if wrong:
                failed += 1
                print("FAIL %s: %s" % (mutant[0], wrong), flush=True)
            else:
                passed += 1
    finally:
        if not opt.keep:
            shutil.rmtree(where)
    print("%d passed, %d failed, 0 skipped" % (passed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
