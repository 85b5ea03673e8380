"""modes.py: what run.py compares: plain SQLite, the extension, and its peers.

A mode is a program, its arguments and the mode that it is measured against: the same
library with no key. Peers are libraries that encrypt by themselves; each has a plain run
of its own, so that a ratio never compares two versions or builds of SQLite.
"""
import collections
import os

Mode = collections.namedtuple("Mode", "title program args base ext")

# Raw keys: nothing is derived from a passphrase, in no mode.
KEY = "".join("%02x" % i for i in range(32))
RAW_KEY = "PRAGMA key='raw:%s'" % KEY  # MC: 32 bytes of key, or 16 of key and 16 of salt

# library, its name in a table, and how a connection is keyed
PEERS = [
    ("sqlcipher", "sqlcipher", "SQLCipher", "PRAGMA key=\"x'%s'\"" % KEY),
    ("mc", "mc_chacha20", "MC chacha20", "PRAGMA cipher='chacha20'; " + RAW_KEY),
    ("mc", "mc_sqlcipher4", "MC sqlcipher 4",
     "PRAGMA cipher='sqlcipher'; PRAGMA legacy=4; PRAGMA key=\"x'%s'\"" % KEY),
    ("mc", "mc_aegis256", "MC aegis-256",
     "PRAGMA cipher='aegis'; PRAGMA algorithm='aegis-256'; " + RAW_KEY),
    ("mc", "mc_aegis128x4", "MC aegis-128x4",
     "PRAGMA cipher='aegis'; PRAGMA algorithm='aegis-128x4'; " + RAW_KEY),
]


def modes_of(build, ext, plain_only, also, peers):
    """The modes by name, in the order of a table. peers: names of libraries."""
    folder = os.path.join(build, "bench")
    own = os.path.join(folder, "workloads")
    modes = {"plain": Mode("plain", own, [], None, None)}
    if not plain_only:
        modes["tde"] = Mode("tde", own, ["--ext", ext], "plain", ext)
    for name, path in also:
        modes[name] = Mode(name, own, ["--ext", path], "plain", path)
    for library in peers:
        program, base = os.path.join(folder, "workloads-" + library), "plain_" + library
        # Past the shim that MC puts in front of the system's VFS: that is its cost, not SQLite's.
        modes[base] = Mode("plain (%s)" % library, program, ["--vfs", "unix"], None, None)
        for lib, name, title, key in PEERS:
            if lib == library:
                modes[name] = Mode(title, program, ["--key", key], base, None)
    return modes
