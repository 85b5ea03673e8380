"""Samples that lint.py's rules are tried on: for each rule the bad ones, which it
must catch, and the good ones, which it must let through, as (path, text)."""


def c(name, body, path="vfs/"):
    """A C file with a proper head."""
    return (path + name, f"/*\n** {name}: a sample.\n*/\n{body}\n")


def long_function(lines):
    return "static int f(int a) {\n" + "  a++;\n" * (lines - 2) + "}"


# Words that the rules look for, put together so that this file passes them.
LATER = "TO" + "DO"
SOMEWHERE = "/ho" + "me/somebody/x"
REGISTRY = "https://registry" + ".npmjs.org/"

SAMPLES = {
    "rule_includes": (
        [c("a.c", '#include "../keyprovider/provider.h"'),
         c("a.c", "#include <openssl/evp.h>"),
         c("a.c", "#include <jansson.h>", "keyprovider/"),
         c("a.c", '#include "sqlite3ext.h"', "keyprovider/"),
         c("a.c", '#include "../vfs/shim.h"', "keyprovider/"),
         c("a.c", "#include <curl/curl.h>", "sql/"),
         c("a.c", '#include "../tde.h"', "ext/base/")],
        [c("a.c", '#include "../ext/base/bytes.h"\n#include "sqlite3ext.h"\n#include <string.h>'),
         c("json.c", "#include <jansson.h>", "keyprovider/"),
         c("a.c", '/* #include <jansson.h> */\n#include "../vfs/tdevfs.h"', "sql/"),
         c("wire.c", '#include "../keyprovider/keydoc.h"\n#include "../vfs/keysource.h"', "ext/")]),
    "rule_banned": (
        [c("a.c", "void f(char *a) { strcpy(a, \"x\"); }"),
         c("a.c", "int f(const char *a) { return atoi (a); }"),
         c("a.c", "void f(void) { system(\"ls\"); }", "tests/unit/"),
         c("a.c", "void f(char *a, char *b) { strncpy(a, b, 3); }")],
        [c("a.c", "/* strcpy(a, b) */ const char *s = \"sprintf(\"; void f(void) { snprintf(0, 0, s); }"),
         c("a.c", "void f(struct x *p) { p->system(1); fgets(0, 0, 0); }")]),
    "rule_secrets": (
        [c("a.c", "void f(void) { tde_log(TDE_LOG_ERROR, \"%s\", dek); }"),
         c("a.c", "void f(struct s *s) { tde_fail(st, TDE_IO, NULL, \"%02x\", s->plain[0]); }"),
         c("a.c", "void f(void) { printf(\"%s\",\n    access_token); }", "keyprovider/"),
         c("a.c", "void f(void) { tde_hex(e->mac_key, 32, text); }"),
         c("a.c", "void f(void) { if (x) fwrite(b->plaintext, 1, 8, out); }")],
        [c("a.c", "void f(void) { tde_log(TDE_LOG_ERROR, \"the dek\"); }"),
         c("a.c", "void f(void) { tde_fail(st, TDE_IO, NULL, \"%zu %s\", sizeof(dek), key_id); }"),
         c("a.c", "void f(void) { g(dek); snprintf(b, n, \"%d %s\", token_len, token_path); }")]),
    "rule_header": (
        [("vfs/a.c", "int x;\n"), ("vfs/a.c", "/*\n** b.c: another name.\n*/\n"),
         ("tests/a.sh", "#!/bin/sh\nset -e\n"), ("tests/a.py", "#!/usr/bin/env python3\nimport os\n"),
         ("tests/a.test", "source harness.tcl\n"), ("Makefile", "all:\n")],
        [c("a.c", ""), ("tests/a.sh", "#!/bin/sh\n# a.sh: does what it says.\n"),
         ("tests/a.py", '"""Does what it says."""\n'), ("README.md", "# x\n")]),
    "rule_length": (
        [c("a.c", long_function(111)), c("a.c", "int\nf(int a)\n{\n" + "  a++;\n" * 120 + "}")],
        [c("a.c", long_function(70)), c("a.c", "static const int a[] = {\n" + "  1,\n" * 200 + "};")]),
    "rule_unfinished": (
        [c("a.c", f"/* {LATER}: write it */"), ("README.md", f"{LATER}\n")],
        [c("a.c", "/* done */"), ("a.sh", "mktemp -d /tmp/a.XXXXXX\n")]),
    "rule_places": (
        [c("a.c", f'const char *p = "{SOMEWHERE}";'), ("README.md", f"see {REGISTRY}\n")],
        [c("a.c", 'const char *p = "/usr/share/unicode";'), ("README.md", "see ~/.local/share\n")]),
    "rule_space": (
        [c("a.c", "int x; "), c("a.c", "\tint x;"), c("a.c", "/* " + "x" * 130 + " */"),
         ("a.sh", "# no newline"), ("a.md", "text\n\n")],
        [c("a.c", "int x;"), ("Makefile", "all:\n\techo\n"), ("a.md", "x" * 130 + "\n")]),
    "rule_test_names": (
        [("a.test", "test a-1.1 {x} {} {}\n  test a-1.1 {y} {} {}\n")],
        [("a.test", "test a-1.1 {x} {} {}\ntest a-1.2 {x} {} {}\n"),
         ("a.test", "test a-1.$n {x} {} {}\ntest a-1.$n {x} {} {}\n")]),
}
