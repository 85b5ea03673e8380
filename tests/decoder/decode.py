#!/usr/bin/env python3
"""An independent decoder of sqlite-tde databases, written from vfs/FORMAT.md.

It shares no code with the extension: Python's standard library for hashes,
the `openssl` program for the private key, and libcrypto (through ctypes) for
AES and AES-GCM alone; XAES-256-GCM and HKDF are built here. Where this program
and the extension disagree, one of them or FORMAT.md is wrong.

  decode.py facts DB                         the header's slots and key document
  decode.py decode KEYS DB OUT               DB, DB-wal and DB-journal in plain
                                             as OUT, OUT-wal and OUT-journal
  decode.py place U INDEX...                 physical offsets of main units
  decode.py selftest                         known answers

KEYS is one of
  --instance DIR    unwrap every epoch's DEK with the private keys in DIR/keys
  --dek EPOCH=HEX   (repeated) the DEKs themselves

What it decodes it also checks, and anything that is not as FORMAT.md says is an
error: exit status 1 and one line on stderr. Each run prints one JSON object.
"""
import argparse
import base64
import ctypes
import ctypes.util
import glob
import hashlib
import hmac
import json
import os
import struct
import subprocess
import sys

HEADER = 65536
HALF = 32768
SLOT = 27648
DOC_MAX = 27520
PREFIX = 128
HOLE_START = int(os.environ.get("TDE_LOCK_BYTES", "0x40000000"), 0)  # tests have them elsewhere
HOLE_END = HOLE_START + 0x10000
OVERHEAD = 48
MAGIC = b"SQLite-TDE\r\n\x1a\n\0\0"
MAGIC_WAL = bytes.fromhex("377f0682") + b"TDE\1" + bytes((0, 0, 16, 0))
SQLITE_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
MAGIC_JOURNAL = b"\0SQLite-TDE\1"
MAIN, WAL, JOURNAL = 1, 2, 3
INFO = {
    MAIN: b"sqlite-tde v1 main",
    WAL: b"sqlite-tde v1 wal",
    JOURNAL: b"sqlite-tde v1 journal",
    "mac": b"sqlite-tde v1 header mac",
}


class Bad(Exception):
    """What is on disk is not as FORMAT.md says."""


# ---- AES and AES-GCM from libcrypto ----

class Libcrypto:
    """The few EVP calls needed, with their types declared."""

    SET_TAG = 0x11
    SET_IVLEN = 0x9
    GET_TAG = 0x10

    def __init__(self):
        name = ctypes.util.find_library("crypto")
        if not name:
            raise Bad("libcrypto was not found")
        self.lib = lib = ctypes.CDLL(name)
        p, i = ctypes.c_void_p, ctypes.c_int
        out = ctypes.POINTER(i)
        for call, result, args in (
            ("EVP_CIPHER_CTX_new", p, []),
            ("EVP_aes_256_ecb", p, []),
            ("EVP_aes_256_gcm", p, []),
            ("EVP_CIPHER_CTX_ctrl", i, [p, i, i, p]),
            ("EVP_CIPHER_CTX_set_padding", i, [p, i]),
            ("EVP_CipherInit_ex", i, [p, p, p, ctypes.c_char_p, ctypes.c_char_p, i]),
            ("EVP_CipherUpdate", i, [p, p, out, ctypes.c_char_p, i]),
            ("EVP_CipherFinal_ex", i, [p, p, out]),
        ):
            f = getattr(lib, call)
            f.restype, f.argtypes = result, args
        self.ctx = lib.EVP_CIPHER_CTX_new()
        self.ecb, self.gcm = lib.EVP_aes_256_ecb(), lib.EVP_aes_256_gcm()

    def _must(self, ok):
        if ok != 1:
            raise Bad("libcrypto failed")

    def aes(self, key, block):
        """AES-256 of one block."""
        lib, n = self.lib, ctypes.c_int(0)
        out = ctypes.create_string_buffer(32)
        self._must(lib.EVP_CipherInit_ex(self.ctx, self.ecb, None, key, None, 1))
        self._must(lib.EVP_CIPHER_CTX_set_padding(self.ctx, 0))
        self._must(lib.EVP_CipherUpdate(self.ctx, out, ctypes.byref(n), block, 16))
        return out.raw[:16]

    def _gcm(self, seal, key, iv, aad, data):
        lib, n = self.lib, ctypes.c_int(0)
        out = ctypes.create_string_buffer(len(data) + 16)
        self._must(lib.EVP_CipherInit_ex(self.ctx, self.gcm, None, None, None, seal))
        self._must(lib.EVP_CIPHER_CTX_ctrl(self.ctx, self.SET_IVLEN, 12, None))
        self._must(lib.EVP_CipherInit_ex(self.ctx, None, None, key, iv, seal))
        self._must(lib.EVP_CipherUpdate(self.ctx, None, ctypes.byref(n), aad, len(aad)))
        self._must(lib.EVP_CipherUpdate(self.ctx, out, ctypes.byref(n), data, len(data)))
        return out

    def gcm_open(self, key, iv, aad, data, tag):
        """The plaintext, or None when the tag is not of this ciphertext."""
        out = self._gcm(0, key, iv, aad, data)
        self._must(self.lib.EVP_CIPHER_CTX_ctrl(self.ctx, self.SET_TAG, 16,
                                                ctypes.create_string_buffer(tag, 16)))
        n = ctypes.c_int(0)
        rest = ctypes.create_string_buffer(16)
        if self.lib.EVP_CipherFinal_ex(self.ctx, rest, ctypes.byref(n)) != 1:
            return None
        return out.raw[:len(data)]

    def gcm_seal(self, key, iv, aad, data):
        out = self._gcm(1, key, iv, aad, data)
        n = ctypes.c_int(0)
        rest = ctypes.create_string_buffer(16)
        tag = ctypes.create_string_buffer(16)
        self._must(self.lib.EVP_CipherFinal_ex(self.ctx, rest, ctypes.byref(n)))
        self._must(self.lib.EVP_CIPHER_CTX_ctrl(self.ctx, self.GET_TAG, 16, tag))
        return out.raw[:len(data)] + tag.raw


CRYPTO = Libcrypto()


def xor(a, b):
    return bytes(x ^ y for x, y in zip(a, b))


class Xaes:
    """XAES-256-GCM (C2SP): K1 from the key once, Kx for each N[0..11]."""

    def __init__(self, key):
        self.key = key
        left = CRYPTO.aes(key, bytes(16))
        n = int.from_bytes(left, "big")
        k1 = bytearray(((n << 1) & ((1 << 128) - 1)).to_bytes(16, "big"))
        if n >> 127:
            k1[15] ^= 0x87
        self.k1 = bytes(k1)
        self.derived = {}

    def _kx(self, head):
        kx = self.derived.get(head)
        if kx is None:
            kx = b"".join(CRYPTO.aes(self.key, xor(self.k1, bytes((0, i, 0x58, 0)) + head))
                          for i in (1, 2))
            self.derived[head] = kx
        return kx

    def open(self, nonce, aad, data, tag):
        return CRYPTO.gcm_open(self._kx(nonce[:12]), nonce[12:], aad, data, tag)

    def seal(self, nonce, aad, data):
        return CRYPTO.gcm_seal(self._kx(nonce[:12]), nonce[12:], aad, data)


def hkdf(secret, salt, info, n=32):
    """RFC 5869 with SHA-256."""
    prk = hmac.new(salt, secret, hashlib.sha256).digest()
    out, block, i = b"", b"", 1
    while len(out) < n:
        block = hmac.new(prk, block + info + bytes((i,)), hashlib.sha256).digest()
        out += block
        i += 1
    return out[:n]


class Keys:
    """The keys of every epoch, derived when first asked for."""

    def __init__(self, deks, uuid):
        self.deks, self.uuid, self.made = deks, uuid, {}

    def _derive(self, epoch, what):
        if epoch not in self.deks:
            return None
        return hkdf(self.deks[epoch], self.uuid, INFO[what])

    def mac(self, epoch, data):
        key = self._derive(epoch, "mac")
        return key and hmac.new(key, data, hashlib.sha256).digest()

    def header_mac(self, slot):
        """Under the keys of all epochs that the key document names."""
        doc = key_document(slot)
        key = self._derive(slot["epoch"], "mac")
        others = b""
        for epoch in sorted(d["epoch"] for d in doc["deks"] if d["epoch"] != slot["epoch"]):
            other = self._derive(epoch, "mac")
            if other is None:
                return None
            others += struct.pack("<I", epoch) + other
        if key and others:
            key = hmac.new(key, others, hashlib.sha256).digest()
        return key and hmac.new(key, slot["signed"], hashlib.sha256).digest()

    def cipher(self, epoch, role):
        if (epoch, role) not in self.made:
            key = self._derive(epoch, role)
            self.made[epoch, role] = key and Xaes(key)
        return self.made[epoch, role]


def open_record(record, index, role, salt, keys):
    """(content, pad) of one record, or None when it does not open."""
    epoch, pad = struct.unpack_from("<II", record)
    cipher = keys.cipher(epoch, role)
    if cipher is None or pad >> 24:
        return None
    aad = struct.pack("<QII", index, epoch, pad | role << 24) + salt
    data = cipher.open(record[8:32], aad, record[32:-16], record[-16:])
    return None if data is None else (data, pad)


# ---- the header ----

def parse_slot(half):
    """A slot's fields, or Bad. Nothing in it is trusted before the HMAC."""
    slot = half[:SLOT]
    if slot[:16] != MAGIC:
        raise Bad("no magic")
    version, header, size, unit, sequence = struct.unpack_from("<IIIIQ", slot, 16)
    if version > 1:
        raise Bad("newer format")
    if version != 1 or header != HEADER or size != SLOT:
        raise Bad("wrong sizes")
    n, epoch = struct.unpack_from("<II", slot, 56)
    if not 1 <= n <= DOC_MAX:
        raise Bad("wrong length of the key document")
    doc = slot[128:128 + n]
    if hashlib.sha256(slot[:96] + doc).digest() != slot[96:128]:
        raise Bad("wrong SHA-256")
    if unit not in (0, 512, 1024, 2048, 4096):
        raise Bad("wrong unit size")
    if any(slot[128 + n:]):
        raise Bad("bytes that are not zero behind the key document")
    return {"unit": unit, "sequence": sequence, "uuid": slot[40:56], "epoch": epoch,
            "hmac": slot[64:96], "signed": slot[:64] + doc, "doc": doc}


def read_slots(raw):
    """Both slots; each a dict, or the text of what is wrong with it."""
    out = []
    for at in (0, HALF):
        try:
            out.append(parse_slot(raw[at:at + HALF]))
        except Bad as e:
            out.append(str(e))
    return out


def by_sequence(slots):
    """The good slots, the one in force first (slot 0 when equal)."""
    good = [s for s in slots if isinstance(s, dict)]
    return sorted(good, key=lambda s: -s["sequence"])


def newest(slots):
    good = by_sequence(slots)
    if not good:
        raise Bad("no slot is whole: %s; %s" % tuple(slots))
    return good[0]


def key_document(slot):
    doc = json.loads(slot["doc"].decode("utf-8"))
    if doc["version"] != 1 or doc["mode"] not in ("inherit", "database"):
        raise Bad("the key document is of another version or mode")
    if doc["epoch"] != slot["epoch"]:
        raise Bad("the key document's epoch is not the slot's")
    return doc


def slot_facts(slot):
    if isinstance(slot, str):
        return {"valid": False, "found": slot}
    return {"valid": True, "sequence": slot["sequence"], "unit": slot["unit"],
            "epoch": slot["epoch"]}


def facts(raw):
    slots = read_slots(raw)
    slot = newest(slots)
    doc = key_document(slot)
    current = [d for d in doc["deks"] if d["epoch"] == doc["epoch"]][0]["wraps"][-1]
    return {"uuid": slot["uuid"].hex(), "unit": slot["unit"], "sequence": slot["sequence"],
            "epoch": slot["epoch"], "epochs": [d["epoch"] for d in doc["deks"]],
            "mode": doc["mode"], "key_id": current["key_id"],
            "key_version": current["version"], "algorithm": current["algorithm"],
            "thumbprint": current["thumbprint"], "slots": [slot_facts(s) for s in slots]}


# ---- DEKs ----

def base64url(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def openssl(args, data=b""):
    run = subprocess.run(["openssl"] + args, input=data, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, check=False)
    return run.stdout if run.returncode == 0 else None


def thumbprint(pem):
    """SHA-256 of the public key in RFC 7638 form."""
    text = openssl(["rsa", "-in", pem, "-noout", "-text"])
    modulus = openssl(["rsa", "-in", pem, "-noout", "-modulus"])
    if text is None or modulus is None:
        return None
    n = bytes.fromhex(modulus.decode().strip().split("=")[1])
    line = [s for s in text.decode().splitlines() if s.startswith("publicExponent:")][0]
    e = int(line.split()[1])

    def b64(b):
        return base64.urlsafe_b64encode(b).decode().rstrip("=")
    jwk = '{"e":"%s","kty":"RSA","n":"%s"}' % (
        b64(e.to_bytes((e.bit_length() + 7) // 8, "big")), b64(n))
    return hashlib.sha256(jwk.encode()).hexdigest()


def unwrap(doc, instance):
    """Every epoch's DEK, with the key whose thumbprint its wrap names."""
    pems = {thumbprint(p): p for p in glob.glob(os.path.join(instance, "keys", "*.pem"))}
    deks = {}
    for entry in doc["deks"]:
        for wrap in reversed(entry["wraps"]):
            pem = pems.get(wrap["thumbprint"])
            if pem is None or wrap["algorithm"] != "RSA-OAEP-256":
                continue
            dek = openssl(["pkeyutl", "-decrypt", "-inkey", pem,
                           "-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256",
                           "-pkeyopt", "rsa_mgf1_md:sha256"], base64url(wrap["wrapped"]))
            if dek is not None and len(dek) == 32:
                deks[entry["epoch"]] = dek
                break
    return deks


# ---- the main database ----

def place(unit, index):
    """The physical offset of a main unit's record."""
    before = (HOLE_START - HEADER) // (unit + OVERHEAD)
    if index < before:
        return HEADER + index * (unit + OVERHEAD)
    return HOLE_END + (index - before) * (unit + OVERHEAD)


def units_in(unit, size):
    """Number of whole records in a main file, and whether bytes are left over."""
    step = unit + OVERHEAD
    before = (HOLE_START - HEADER) // step
    if size <= HOLE_END:
        n = min(max(size - HEADER, 0) // step, before)
        return n, n < before and HEADER + n * step < size
    return before + (size - HOLE_END) // step, (size - HOLE_END) % step != 0


def guarded(raw, unit, keys):
    """Units that a double-write area holds: index to (content, pad)."""
    out = {}
    for half in (0, HALF):
        at = half + SLOT
        mark = struct.unpack_from("<Q", raw, at)[0]
        if mark:
            got = open_record(raw[at + 8:at + 8 + unit + OVERHEAD], mark - 1, MAIN, bytes(16), keys)
            if got:
                out[mark - 1] = got
    return out


def trusted_slot(raw, deks):
    """The slot in force whose HMAC holds, and the keys."""
    for slot in by_sequence(read_slots(raw)):
        keys = Keys(deks, slot["uuid"])
        mac = keys.header_mac(slot)
        if mac and hmac.compare_digest(mac, slot["hmac"]):
            return slot, keys
    raise Bad("no slot's HMAC holds under these DEKs")


def decode_main(path, out, deks):
    size = os.path.getsize(path)
    with open(path, "rb") as f, open(out, "wb") as to:
        raw = f.read(HEADER)
        slot, keys = trusted_slot(raw, deks)
        unit = slot["unit"]
        done = {"units": 0, "guarded": 0, "size": 0}
        if unit == 0:
            if size > HEADER:
                raise Bad("records in a database without a unit size")
            return slot, keys, done
        n, rest = units_in(unit, size)
        if rest:
            raise Bad("the main file ends within a record")
        areas = guarded(raw, unit, keys)
        for i in range(n):
            f.seek(place(unit, i))
            got = open_record(f.read(unit + OVERHEAD), i, MAIN, bytes(16), keys)
            if got is None:
                got = areas.get(i)
                done["guarded"] += 1
            if got is None:
                raise Bad("main unit %d does not open" % i)
            data, pad = got
            last = i == n - 1
            if pad > unit or (last and any(data[unit - pad:])):
                raise Bad("main unit %d: wrong pad" % i)
            to.write(data[:unit - pad] if last else data)
        done["units"], done["size"] = n, to.tell()
        return slot, keys, done


# ---- WAL and journal ----

def wal_checksum(b):
    """SQLite's, of the WAL's header (its file format, section 4.2), by little-endian words."""
    one = two = 0
    for x, y in struct.iter_unpack("<II", b):
        one = (one + x + two) & 0xffffffff
        two = (two + y + one) & 0xffffffff
    return one, two


def read_prefix(f, magic, keys):
    """The prefix's fields, or None when the log is void, torn or absent."""
    raw = f.read(PREFIX)
    if len(raw) < PREFIX or raw == bytes(PREFIX) or raw[:12] != magic:
        return None
    epoch, unit = struct.unpack_from("<II", raw, 12)
    if (raw[20:24] != hashlib.sha256(raw[:20] + raw[32:]).digest()[:4] or
            raw[24:32] != struct.pack(">II", *wal_checksum(raw[:24]))):
        return None
    if raw[32:48] != keys.uuid:
        raise Bad("the log is another database's")
    mac = keys.mac(epoch, raw[:20] + raw[32:96])
    if mac is None:
        raise Bad("the log is of an unknown epoch")
    if not hmac.compare_digest(mac, raw[96:]):
        return None
    return {"epoch": epoch, "unit": unit, "salt": raw[48:64], "thumbprint": raw[64:96].hex()}


def records_end(f, role):
    """Where the records end: a journal's may be followed by the super-journal's name in plain."""
    size = os.fstat(f.fileno()).st_size
    if role != JOURNAL or size <= PREFIX + 16:
        return size
    n, total, magic = struct.unpack(">II8s", os.pread(f.fileno(), 16, size - 16))
    if magic != SQLITE_JOURNAL_MAGIC or not 0 < n <= size - 16 - PREFIX:
        return size
    name = os.pread(f.fileno(), n, size - 16 - n)
    chars = sum(b - 256 * (b > 127) for b in name)
    return size - 16 - n if chars & 0xffffffff == total else size


def decode_log(path, out, role, keys, expect):
    """Decodes a WAL or journal. A record that does not open reads as zeros, and
    at the file's end not at all: such are of older generations, or torn."""
    magic = MAGIC_WAL if role == WAL else MAGIC_JOURNAL
    done = {"void": True, "units": 0, "closed": 0, "size": 0}
    with open(path, "rb") as f:
        prefix = read_prefix(f, magic, keys)
        if prefix is None:
            return done
        if prefix["thumbprint"] != expect:
            done["thumbprint"] = prefix["thumbprint"]
        if role == JOURNAL and prefix["unit"] != 512:
            raise Bad("the journal's unit size is not 512")
        parts, end, i = [], 0, 0
        stop = records_end(f, role)
        while True:
            unit = 32 if role == WAL and i == 0 else prefix["unit"]
            record = f.read(min(unit + OVERHEAD, stop - f.tell()))
            if len(record) < unit + OVERHEAD:
                break
            last = f.tell() == stop
            got = open_record(record, i, role, prefix["salt"], keys)
            if got is None:
                parts.append(bytes(unit))
                done["closed"] += 1
            else:
                data, pad = got
                if last and (pad > unit or any(data[unit - pad:])):
                    raise Bad("unit %d of the log: wrong pad" % i)
                parts.append(data[:unit - pad] if last else data)
                end = len(parts)
                done["units"] += 1
            i += 1
        if record:
            done["torn"] = len(record)
    with open(out, "wb") as to:
        to.write(b"".join(parts[:end]))
        done["size"] = to.tell()
    done["void"] = False
    return done


def decode(args):
    with open(args.db, "rb") as f:
        raw = f.read(HEADER)
    known = facts(raw)
    if args.instance:
        deks = {}
        for slot in reversed(by_sequence(read_slots(raw))):
            deks.update(unwrap(key_document(slot), args.instance))
    else:
        deks = {int(e): bytes.fromhex(h) for e, h in (d.split("=") for d in args.dek)}
    for suffix in ("", "-wal", "-journal"):
        if os.path.exists(args.out + suffix):
            os.remove(args.out + suffix)
    slot, keys, known["main"] = decode_main(args.db, args.out, deks)
    known["unit"] = slot["unit"]
    for suffix, role in (("-wal", WAL), ("-journal", JOURNAL)):
        if os.path.exists(args.db + suffix):
            known[suffix[1:]] = decode_log(args.db + suffix, args.out + suffix, role, keys,
                                           known["thumbprint"])
    return known


# ---- known answers ----

def check(what, ok):
    if not ok:
        raise Bad("selftest: " + what)


def selftest():
    nonce, text = b"ABCDEFGHIJKLMNOPQRSTUVWX", b"XAES-256-GCM"
    for key, aad, answer in (   # C2SP, XAES-256-GCM, "Test vectors"
        (b"\x01" * 32, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (b"\x03" * 32, b"c2sp.org/XAES-256-GCM",
         "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ):
        sealed = Xaes(key).seal(nonce, aad, text)
        check("XAES-256-GCM seals", sealed.hex() == answer)
        check("XAES-256-GCM opens", Xaes(key).open(nonce, aad, sealed[:-16], sealed[-16:]) == text)
        bad = sealed[:-1] + bytes((sealed[-1] ^ 1,))
        check("XAES-256-GCM rejects", Xaes(key).open(nonce, aad, bad[:-16], bad[-16:]) is None)
    check("HKDF", hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xf0, 0xfa)), 42).hex() ==
          "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
    for unit in (512, 1024, 2048, 4096):
        before = (HOLE_START - HEADER) // (unit + OVERHEAD)
        check("the last record before the lock bytes ends there or earlier",
              place(unit, before - 1) + unit + OVERHEAD <= HOLE_START)
        check("one more would reach in",
              HEADER + (before + 1) * (unit + OVERHEAD) > HOLE_START)
        check("the next one follows them", place(unit, before) == HOLE_END)
        for i in (0, 1, before - 1, before, before + 1, 2 * before):
            check("records and sizes agree",
                  units_in(unit, place(unit, i) + unit + OVERHEAD) == (i + 1, False))
            check("a part of a record is seen",
                  units_in(unit, place(unit, i) + 1) == (i, True))
    return {"selftest": "ok"}


def main():
    top = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sub = top.add_subparsers(dest="what", required=True)
    sub.add_parser("facts").add_argument("db")
    p = sub.add_parser("decode")
    keys = p.add_mutually_exclusive_group(required=True)
    keys.add_argument("--instance")
    keys.add_argument("--dek", action="append")
    p.add_argument("db")
    p.add_argument("out")
    p = sub.add_parser("place")
    p.add_argument("unit", type=int)
    p.add_argument("index", type=int, nargs="+")
    sub.add_parser("selftest")
    args = top.parse_args()
    try:
        if args.what == "facts":
            with open(args.db, "rb") as f:
                out = facts(f.read(HEADER))
        elif args.what == "decode":
            out = decode(args)
        elif args.what == "place":
            out = [place(args.unit, i) for i in args.index]
        else:
            out = selftest()
    except (Bad, OSError, ValueError, KeyError, IndexError, struct.error) as e:
        sys.exit("decode.py: %s: %s" % (type(e).__name__, e))
    print(json.dumps(out))


if __name__ == "__main__":
    main()
