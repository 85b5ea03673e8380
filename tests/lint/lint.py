#!/usr/bin/env python3
"""The project's own rules, checked on every file that git knows or would add.

    lint.py [--root DIR] [--so PATH-OF-TDE.SO]

Each rule is a test: it passes, or its findings are printed as file:line and it
fails. Each rule also has a bad sample (samples.py) that it must catch and a good
one that it must let through; they are tried first, since a lint that finds
nothing proves nothing. The last line is `N passed, N failed, N skipped`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "crash")]
sys.dont_write_bytecode = True
import samples  # noqa: E402
from mutants import MUTANTS  # noqa: E402

WARN_LINES, FAIL_LINES, WIDTH = 70, 110, 120  # clang-format aims at 100 columns
PRODUCT = ("ext/", "vfs/", "keyprovider/", "sql/")
TEXT = (".c", ".h", ".py", ".sh", ".tcl", ".test", ".mk", ".md", ".map", ".txt", ".supp", ".yml",
        ".json")
NAMED = ("Makefile", "LICENSE", ".ci/run", ".clang-format", ".clang-tidy", ".gitignore")


class Source:
    """One file: its text, and for C the text without comments and strings."""

    def __init__(self, path, text):
        self.path, self.text = path, text
        self.lines = text.split("\n")
        self.is_c = path.endswith((".c", ".h"))
        self.product = self.is_c and path.startswith(PRODUCT)
        self.code = blank_comments(text, strings=True) if self.is_c else text
        self.with_strings = blank_comments(text, strings=False) if self.is_c else text


def blank_comments(text, strings):
    """C text with comments (and the inside of string literals) made blank; the
    places of everything else stay the same."""
    pattern = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)

    def blank(m):
        s = m.group(0)
        if s[0] in "\"'":
            return s if not strings else s[0] + " " * (len(s) - 2) + s[0]
        return re.sub(r"[^\n]", " ", s)

    return pattern.sub(blank, text)


def line_of(text, pos):
    return text.count("\n", 0, pos) + 1


# ---- includes -------------------------------------------------------------

BASE_SYSTEM = {"openssl"}
ALLOWED = {  # the architecture's table: folders and libraries beside the module's own and libc
    "ext/base": ({"ext/base"}, {"openssl", "intel-ipsec-mb.h"}),
    "vfs": ({"ext/base"}, {"sqlite3ext.h"}),
    "keyprovider": ({"ext/base"}, {"openssl"}),
    "sql": ({"ext/base", "vfs", "keyprovider"}, {"sqlite3ext.h"}),
    "ext": ({"ext/base", "vfs", "keyprovider", "sql"}, {"sqlite3ext.h", "sqlite3.h", "openssl"}),
}
ONLY_IN = {  # a library that one file alone may use
    "jansson.h": "keyprovider/json.c",
    "curl": "keyprovider/http.c",
    "intel-ipsec-mb.h": "ext/base/gcm_ipsec.c",
}
LIBRARIES = ("openssl", "sqlite3.h", "sqlite3ext.h", "jansson.h", "curl", "intel-ipsec-mb.h")


def module_of(path):
    folder = os.path.dirname(path)
    return next((m for m in ALLOWED if folder == m), None)


def rule_includes(src):
    """module includes follow the architecture's table"""
    module = module_of(src.path)
    if not src.product or not module:
        return
    folders, libraries = ALLOWED[module]
    for n, line in enumerate(src.with_strings.split("\n"), 1):
        m = re.match(r'\s*#\s*include\s+([<"])([^>"]+)[>"]', line)
        if not m:
            continue
        name = m.group(2)
        head = name.split("/")[0] if name.split("/")[0] in ("openssl", "curl") else name
        if head in LIBRARIES:
            owner = ONLY_IN.get(head)
            if owner and src.path != owner:
                yield n, f"{name}: only {owner} may include it"
            elif not owner and head not in libraries:
                yield n, f"{module} may not include {name}"
        elif m.group(1) == '"':
            target = os.path.normpath(os.path.join(os.path.dirname(src.path), name))
            folder = os.path.dirname(target)
            if folder != module and folder not in folders:
                yield n, f"{module} may not include {target}"


# ---- calls ----------------------------------------------------------------

BANNED = ("strcpy", "strcat", "sprintf", "vsprintf", "gets", "strtok", "atoi", "system", "strncpy",
          "strncat", "alloca", "mktemp", "tmpnam", "rand", "srand", "sscanf", "popen", "atol")


def rule_banned(src):
    """banned functions"""
    if not src.is_c:
        return
    names = BANNED if src.product else BANNED[:8]
    for m in re.finditer(r"(?<![\w.>])(%s)\s*\(" % "|".join(names), src.code):
        if src.code[:m.start()].endswith("->"):
            continue
        yield line_of(src.code, m.start()), f"{m.group(1)} is banned"


SECRET = {"dek", "deks", "kek", "secret", "secrets", "plain", "plaintext", "password", "passphrase",
          "token", "pin", "mac_key", "role_key", "private", "bearer", "subkey", "subkeys"}
PRINTERS = ("tde_fail", "tde_log", "tde_result_status", "printf", "fprintf", "snprintf", "vsnprintf",
            "dprintf", "syslog", "perror", "puts", "fputs", "sqlite3_mprintf", "sqlite3_vmprintf",
            "sqlite3_snprintf", "sqlite3_str_appendf", "sqlite3_log", "sqlite3_result_error",
            "tde_json_set_text", "tde_json_set_hex", "tde_hex", "tde_base64url", "fwrite", "refuse",
            "refuse_log", "fail")


def arguments(code, start):
    """The text between the parenthesis at start and its partner."""
    depth = 0
    for i in range(start, len(code)):
        if code[i] == "(":
            depth += 1
        elif code[i] == ")":
            depth -= 1
            if depth == 0:
                return code[start + 1:i]
    return ""


def secret_names(args):
    """Identifiers in an argument list whose value is key material or content."""
    args = re.sub(r"\bsizeof\s*\([^()]*\)|\bsizeof\s+\w+", " ", args)
    args = re.sub(r"\bTDE_\w+|\b[A-Z][A-Z0-9_]+\b", " ", args)
    for m in re.finditer(r"[A-Za-z_]\w*", args):
        name = m.group(0)
        rest = args[m.end():].lstrip()
        if rest.startswith("("):
            continue  # a call: what it returns has a name of its own
        parts = set(name.lower().split("_"))
        if name.lower() in SECRET or parts & SECRET:
            if not re.match(r"(n|len|size|num)_|.*_(n|len|size|id|name|path|file|env|cap|count)$|n[a-z]+$",
                            name.lower()):
                yield name


def rule_secrets(src):
    """no key material, token or page content in a message"""
    if not src.product:
        return
    for m in re.finditer(r"(?<![\w.>])(%s)\s*\(" % "|".join(PRINTERS), src.code):
        line = line_of(src.code, m.start())
        if re.match(r"[\w\s*]+\b%s\s*\([^;{]*\)\s*[;{]" % m.group(1), src.code[src.code.rfind("\n", 0, m.start()) + 1:]) \
                and src.code[src.code.rfind("\n", 0, m.start()) + 1].strip():
            continue  # its declaration or definition
        for name in secret_names(arguments(src.code, m.end() - 1)):
            yield line, f"{m.group(1)}: '{name}' must not be printed"


# ---- shape ----------------------------------------------------------------

def rule_header(src):
    """every file says what it is for"""
    name = os.path.basename(src.path)
    text = src.text
    if src.is_c:
        if not re.match(r"/\*\n\*\* %s: \S" % re.escape(name), text):
            yield 1, f"begins with /*, ** {name}: what it is for"
    elif src.path.endswith((".sh", ".tcl", ".test", ".mk")) or name in ("Makefile", "run"):
        body = re.sub(r"^#!.*\n", "", text)
        if not re.match(r"#+ *\S.{10,}", body):
            yield 1, "begins with a comment on what it is for"
    elif src.path.endswith(".py"):
        if not re.match(r'(#!.*\n)?"""\S', text):
            yield 1, "begins with a docstring on what it is for"


def functions(src):
    """(first line, lines, name) of each function of a C file in the house style."""
    start, name = 0, ""
    for n, line in enumerate(src.code.split("\n"), 1):
        if re.match(r"[A-Za-z_]", line) and not line.startswith(("typedef", "struct", "enum")):
            start, name = n, line
        elif line.startswith("}"):
            called = re.search(r"(\w+)\s*\(", name)
            if start and called and not line.startswith("};"):
                yield start, n - start + 1, called.group(1)
            start = 0


def rule_length(src):
    """functions of at most 110 lines (a warning above 70)"""
    if not src.is_c:
        return
    for start, n, name in functions(src):
        if n > FAIL_LINES:
            yield start, f"{name} has {n} lines, more than {FAIL_LINES}"
        elif n > WARN_LINES:
            yield start, f"warning: {name} has {n} lines, more than {WARN_LINES}"


UNFINISHED = "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"])


def rule_unfinished(src):
    """nothing is marked as unfinished"""
    for n, line in enumerate(src.lines, 1):
        m = re.search(r"\b(%s)\b" % UNFINISHED, line)
        if m and not re.search(r"X{6}", line):
            yield n, f"'{m.group(1)}'"


MACHINE = r"(?<!\w)(?:%s)" % "|".join(
    ["/wo" + r"rk/", "/ro" + r"ot\b", "/ho" + r"me/[a-z]+/", "/tmp/" + r"sq\b"])
HOSTS = "|".join(["registry" + r"\.npmjs", r"\bpypi\." + "org", "files" + r"\.pythonhosted", "crates" + r"\.io",
                  "proxy" + r"\.golang", r"deb\." + "debian" + r"\.org", "rubygems" + r"\.org",
                  "repo1?" + r"\.maven"])


def rule_places(src):
    """no path of one machine, no host of a package registry"""
    for n, line in enumerate(src.lines, 1):
        m = re.search(MACHINE, line) or re.search(HOSTS, line)
        if m:
            yield n, f"'{m.group(0)}'"


def rule_space(src):
    """no trailing space, no tab in C, lines of at most 120 columns in C, a newline at the end"""
    for n, line in enumerate(src.lines, 1):
        if line != line.rstrip() and src.path != "LICENSE":
            yield n, "trailing space"
        if src.is_c and "\t" in src.code.split("\n")[n - 1]:
            yield n, "a tab"
        if src.is_c and len(line) > WIDTH:
            yield n, f"{len(line)} columns"
    if src.text and not src.text.endswith("\n"):
        yield len(src.lines), "no newline at the end"
    elif src.text.endswith("\n\n"):
        yield len(src.lines) - 1, "an empty line at the end"


def rule_test_names(src):
    """a test's name is its own in its file, so that it can be run alone"""
    seen = set()
    for n, line in enumerate(src.lines, 1):
        m = re.match(r"\s*test ([^ $]+) ", line) if src.path.endswith(".test") else None
        if m and m.group(1) in seen:
            yield n, f"a second {m.group(1)}"
        if m:
            seen.add(m.group(1))


def rule_links(src, root):
    """links between documents lead somewhere"""
    if not src.path.endswith(".md"):
        return
    for m in re.finditer(r"\]\(([^)#\s]+)[^)]*\)", src.text):
        target = m.group(1)
        if re.match(r"[a-z]+:", target):
            continue
        if not os.path.exists(os.path.join(root, os.path.dirname(src.path), target)):
            yield line_of(src.text, m.start()), f"{target} does not exist"


FILE_RULES = [rule_includes, rule_banned, rule_secrets, rule_header, rule_length, rule_unfinished,
              rule_places, rule_space, rule_test_names]


# ---- exports --------------------------------------------------------------

def wanted_exports(map_text):
    m = re.search(r"global:(.*?)local:", map_text, re.S)
    return set(re.findall(r"\w+", m.group(1))) if m else set()


def exported(nm_output):
    return {line.split()[-1].split("@")[0] for line in nm_output.splitlines()
            if len(line.split()) == 3 and line.split()[1] in "TDBRGSVWiu"}


def check_exports(have, want):
    """tde.so exports what ext/tde.map names, and nothing else"""
    for name in sorted(have - want):
        yield f"exported, but not in ext/tde.map: {name}"
    for name in sorted(want - have):
        yield f"in ext/tde.map, but not exported: {name}"


# ---- SQLite's versions ----------------------------------------------------

SQLITE_HEADER = "/usr/include/sqlite3ext.h"


def introduced(header):
    """Functions by the version of SQLite that brought them into the extension API."""
    macros = dict(re.findall(r"#define\s+(sqlite3_\w+)\s+sqlite3_api->(\w+)", header))
    since, at = {}, 0
    for line in header.splitlines():
        v = re.search(r"Version (\d+)\.(\d+)\.(\d+) and later", line)
        if v:
            at = int(v.group(1)) * 1000000 + int(v.group(2)) * 1000 + int(v.group(3))
        member = re.search(r"\(\*(\w+)\)\(", line)
        if member:
            since[member.group(1)] = at
    return {name: since.get(member, 0) for name, member in macros.items()}


def check_sqlite(sources, header):
    """no function of SQLite is called that OLDEST_SQLITE (ext/tde.c) does not have"""
    since = introduced(header)
    oldest = [m for s in sources for m in re.findall(r"#define OLDEST_SQLITE (\d+)", s.text)]
    if len(oldest) != 1 or not since:
        yield f"OLDEST_SQLITE is defined {len(oldest)} times, {len(since)} functions are known"
        return
    for s in sources:
        for m in re.finditer(r"\b(sqlite3_\w+)\s*\(", s.code) if s.is_c and s.product else ():
            if since.get(m.group(1), 0) > int(oldest[0]):
                yield f"{s.path}:{line_of(s.code, m.start())}: {m.group(1)} came with {since[m.group(1)]}"


# ---- mutants --------------------------------------------------------------

def check_mutants(sources, mutants):
    """what tests/crash/mutants.py breaks is there to be broken, exactly once"""
    texts = {s.path: s.text for s in sources}
    for name, path, old, *_ in mutants:
        n = texts.get(path, "").count(old)
        if n != 1:
            yield f"tests/crash/mutants.py: {name}: its text is {n} times in {path}"


# ---- the tests that SECURITY.md names ---------------------------------------

def cited(table):
    """What stands in code in the last column of a table, without the suite's name."""
    for line in table.splitlines():
        cells = [c for c in line.split("|") if c.strip()]
        for name in re.findall(r"`([^`]+)`", cells[-1]) if len(cells) == 3 else ():
            yield name.split(": ")[-1]


def covers(test, name):
    """Does a test's name, of which a part may be a variable, begin with this one?"""
    return len(name) <= len(test) and all(a == b or re.search(r"[$[]", a) for a, b in zip(test, name))


def check_cited(security, sources):
    """the tests that SECURITY.md names for its claims are there"""
    tests = [s for s in sources if s.path.startswith("tests/") or s.path.endswith(("Makefile", ".mk"))]
    named = [m.split(".") for s in tests if s.path.endswith(".test")
             for m in re.findall(r"^\s*test (\S+)", s.text, re.M)]
    words = {w for s in tests for w in re.findall(r"[\w-]+", s.text)}
    words |= {os.path.basename(s.path) for s in tests}
    for name in cited(security):
        if re.match(r"[a-z_]+-\d", name):
            there = any(covers(n, name.split(".")) for n in named)
        else:
            there = name.removeprefix("make ") in words
        if not there:
            yield f"SECURITY.md: there is no test {name}"


# ---- what the instance's file may hold --------------------------------------

def check_members(sources):
    """the documents have each member of the instance's file, and the policy's bounds as the code has them"""
    code = "".join(s.text for s in sources if s.path.startswith("keyprovider/") and s.is_c)
    docs = "".join(s.text for s in sources if s.path in ("sql/SQL.md", "keyprovider/PROVIDERS.md"))
    names = {n for m in re.findall(r"#define TDE_\w+_NAMES \"([^\"]+)\"", code) for n in m.split()}
    for name in sorted(names):
        if not re.search(rf"[`\".]{name}[`\"]", docs):
            yield f"{name}: a member of the instance's file that is in no document"
    rows = {m[0]: m[1:] for m in re.findall(r"\| `(\w+)` \| (\d+) to (\d+)[^|]*\| (\d+) \|", docs)}
    items = re.findall(r'\{"(\w+)", (\d+), (\d+), (\d+), offsetof\(tde_policy', code)
    for name, default, low, high in items:
        if rows.get(name) != (low, high, default):
            yield f"{name}: sql/SQL.md says {rows.get(name)}, policy.c {(low, high, default)}"
    if not names or not items:
        yield "keyprovider/: no members, or no policy, found"


# ---- the run --------------------------------------------------------------

def files(root):
    cmd = ["git", "-C", root, "ls-files", "-z", "-co", "--exclude-standard"]
    try:
        run = subprocess.run(cmd, capture_output=True, check=True)
        names = run.stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):  # no git here, or an unpacked archive
        names = []
        for folder, dirs, here in os.walk(root):
            dirs[:] = [d for d in dirs if not d.startswith((".git", "build")) and d != "__pycache__"]
            names += [os.path.relpath(os.path.join(folder, f), root) for f in here]
    for name in sorted(set(filter(None, names))):
        if (name.endswith(TEXT) or name in NAMED) and os.path.isfile(os.path.join(root, name)):
            yield name


def read(root, name):
    with open(os.path.join(root, name), encoding="utf-8", errors="replace") as f:
        return Source(name, f.read())


class Tally:
    """Counts rules, and prints what each found."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def rule(self, title, findings):
        bad = [f for f in findings if "warning:" not in f]
        for f in findings:
            print(f)
        if bad:
            self.failed += 1
            print(f"FAIL {title}: {len(bad)}")
        else:
            self.passed += 1

    def skip(self, title, why):
        self.skipped += 1
        print(f"skipped: {title}: {why}")


def self_test(tally):
    """Each rule catches its bad samples and lets the good ones through."""
    for rule in FILE_RULES:
        bad, good = samples.SAMPLES[rule.__name__]
        missed = [f"lint: {rule.__name__} misses the bad sample {i} ({p})"
                  for i, (p, t) in enumerate(bad)
                  if not [f for f in rule(Source(p, t)) if "warning:" not in f[1]]]
        false = [f"lint: {rule.__name__} rejects the good sample {i} ({p}): {list(rule(Source(p, t)))}"
                 for i, (p, t) in enumerate(good) if list(rule(Source(p, t)))]
        tally.rule(f"self-test of {rule.__name__}", missed + false)
    with tempfile.TemporaryDirectory() as box:
        open(os.path.join(box, "there.md"), "w", encoding="utf-8").close()
        dead = list(rule_links(Source("a.md", "[x](gone.md)"), box))
        live = list(rule_links(Source("a.md", "[x](there.md#part) [y](https://example.org/z)"), box))
        tally.rule("self-test of rule_links", ["lint: rule_links"] if live or not dead else [])
    nm = "0000000000001000 T tde_register\n0000000000001010 T stray\n                 U malloc\n"
    found = list(check_exports(exported(nm), wanted_exports("{ global: tde_register; absent; local: *; };")))
    tally.rule("self-test of exports", [] if len(found) == 2 else [f"lint: exports: {found}"])
    header = ("/* Version 3.40.1 and later */\n  int (*young)(int);\n"
              "#define sqlite3_young   sqlite3_api->young\n")
    for oldest, wrong in ((3040000, 1), (3040001, 0)):
        code = Source("vfs/a.c", f"#define OLDEST_SQLITE {oldest}\nint f(void) {{ return sqlite3_young(1); }}\n")
        found = list(check_sqlite([code], header))
        tally.rule(f"self-test of check_sqlite, {oldest}", [] if len(found) == wrong else [f"lint: {found}"])
    found = list(check_mutants([Source("a.c", "x y y")],
                               [(f"m{i}", path, old) for i, (path, old) in
                                enumerate([("a.c", "x"), ("a.c", "y"), ("a.c", "z"), ("b.c", "x")])]))
    tally.rule("self-test of check_mutants", [] if len(found) == 3 else [f"lint: {found}"])
    found = list(check_cited("| a | b | `a-1.1`, `a-2.3`, `a-3`, `unit: f`, `unit: g`, `a.test` |\n",
                             [Source("tests/a.test", "test a-1.1 {x}\n  test a-2.$n {x}\n"),
                              Source("tests/unit/a.c", "void f(void);\n")]))
    tally.rule("self-test of check_cited", [] if len(found) == 2 else [f"lint: {found}"])
    code = Source("keyprovider/a.c", '#define TDE_A_NAMES "told untold"\n{"p", 3, 1, 9, offsetof(tde_policy, p)}\n')
    for row, wrong in (("| `p` | 1 to 9 | 3 | what |\n", 1), ("| `p` | 1 to 9 | 4 | what |\n", 2)):
        found = list(check_members([code, Source("sql/SQL.md", "`told` " + row)]))
        tally.rule("self-test of check_members", [] if len(found) == wrong else [f"lint: {found}"])


def main():
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    p = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("--root", default=here)
    p.add_argument("--so")
    args = p.parse_args()
    tally = Tally()
    self_test(tally)
    sources = [read(args.root, n) for n in files(args.root)]
    if not any(s.product for s in sources):
        tally.rule("there is something to look at", ["lint: no source file found"])
    for rule in FILE_RULES:
        tally.rule(rule.__doc__, [f"{s.path}:{n}: {what}" for s in sources for n, what in rule(s)])
    tally.rule(rule_links.__doc__,
               [f"{s.path}:{n}: {w}" for s in sources for n, w in rule_links(s, args.root)])
    tally.rule(check_mutants.__doc__, list(check_mutants(sources, MUTANTS)))
    security = [s.text for s in sources if s.path == "SECURITY.md"]
    tally.rule(check_cited.__doc__, list(check_cited("".join(security), sources)))
    tally.rule(check_members.__doc__, list(check_members(sources)))
    if os.path.exists(SQLITE_HEADER):
        with open(SQLITE_HEADER, encoding="utf-8") as f:
            tally.rule(check_sqlite.__doc__, list(check_sqlite(sources, f.read())))
    else:
        tally.skip(check_sqlite.__doc__, f"no {SQLITE_HEADER}")
    if args.so:
        nm = subprocess.run(["nm", "-D", "--defined-only", args.so], capture_output=True, text=True,
                            check=True).stdout
        with open(os.path.join(args.root, "ext/tde.map"), encoding="utf-8") as f:
            tally.rule(check_exports.__doc__, list(check_exports(exported(nm), wanted_exports(f.read()))))
    else:
        tally.skip(check_exports.__doc__, "no --so given")
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
