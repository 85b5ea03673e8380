#!/usr/bin/env python3
"""A client of HashiCorp Vault that is not ours (python3-hvac) against the test key server, and against what the
extension wrapped there.

    transit_peer.py SERVER CONFIG TDE.SO

Starts the server in a folder of its own. The last line is the totals.
"""
import base64
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

try:
    import hvac
except ImportError:
    print("skipped: python3-hvac is not installed\n0 passed, 0 failed, 1 skipped")
    sys.exit(0)

server, config, so = sys.argv[1:4]
box = tempfile.TemporaryDirectory()
state = os.path.join(box.name, "state")
passed = failed = 0
real = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: real("127.0.0.1" if host == "bao.localtest" else host, *rest, **more)


def check(what, ok):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print(f"FAIL {what}")


def refused(kind, call, *args, **more):
    try:
        call(*args, **more)
    except kind:
        return True
    return False


def read(*path):
    with open(os.path.join(state, *path), encoding="ascii") as f:
        return f.read().strip()


def b64(data):
    return base64.b64encode(data).decode()


def client(port, token=None):
    return hvac.Client(url=f"https://bao.localtest:{port}", verify=os.path.join(state, "ca.pem"), token=token)


def clients(port):
    admin = client(port, read("identities", "bao-admin", "token"))
    app = client(port)
    check("a role is let in", app.auth_approle("bao-app", read("identities", "bao-app", "secret-id"))["auth"]["lease_duration"] > 0)
    check("a wrong secret id is not", refused(hvac.exceptions.InvalidRequest, client(port).auth_approle, "bao-app", "wrong"))
    work = client(port)
    check("a workload is let in", work.auth_kubernetes("app", read("identities", "bao-workload", "jwt"))["auth"]["renewable"])
    check("a token is renewed", app.renew_token()["auth"]["client_token"] == app.token)
    check("no token is denied", refused(hvac.exceptions.Forbidden, client(port, "hvs.none").secrets.transit.read_key, "tde"))
    return admin, app


def engine(admin, app):
    transit = admin.secrets.transit
    for kind in ("aes256-gcm96", "chacha20-poly1305", "rsa-2048"):
        name = "peer-" + kind
        transit.create_key(name, key_type=kind)
        key = transit.read_key(name)["data"]
        check(f"{kind}: what is read", key["type"] == kind and key["latest_version"] == 1 and list(key["keys"]) == ["1"])
        text = b64(os.urandom(32))
        first = app.secrets.transit.encrypt_data(name, text)["data"]["ciphertext"]
        check(f"{kind}: back again", app.secrets.transit.decrypt_data(name, first)["data"]["plaintext"] == text)
        transit.rotate_key(name)
        second = app.secrets.transit.encrypt_data(name, text)["data"]["ciphertext"]
        check(f"{kind}: versions", first.startswith("vault:v1:") and second.startswith("vault:v2:"))
        check(f"{kind}: the old one", app.secrets.transit.decrypt_data(name, first)["data"]["plaintext"] == text)
        transit.update_key_configuration(name, min_decryption_version=2, deletion_allowed=True)
        check(f"{kind}: too old", refused(hvac.exceptions.InvalidRequest, app.secrets.transit.decrypt_data, name, first))
        bad = second[:-8] + ("AAAAAAA=" if second.endswith("=") else "AAAAAAAA")
        check(f"{kind}: changed", refused(hvac.exceptions.VaultError, app.secrets.transit.decrypt_data, name, bad))
        transit.delete_key(name)
        check(f"{kind}: deleted", refused(hvac.exceptions.InvalidPath, transit.read_key, name))
    text, ad = b64(b"x" * 32), b64(b"one")
    bound = app.write("transit/encrypt/tde", plaintext=text, associated_data=ad)["data"]["ciphertext"]
    check("bound", app.write("transit/decrypt/tde", ciphertext=bound, associated_data=ad)["data"]["plaintext"] == text)
    for other in ({}, {"associated_data": b64(b"two")}):
        check("bound to it alone", refused(hvac.exceptions.InvalidRequest, app.write, "transit/decrypt/tde", ciphertext=bound, **other))


def instance(port):
    folder = os.path.join(box.name, "instance")
    os.mkdir(folder, 0o700)
    conf = {"version": 1, "default_protector": "vault:https://bao.localtest/transit/keys/tde",
            "http": {"ca_file": os.path.join(state, "ca.pem"), "connect_to": f"127.0.0.1:{port}"},
            "identities": {"app": {"kind": "vault_approle", "address": "https://bao.localtest", "role_id": "bao-app",
                                   "secret_file": os.path.join(state, "identities", "bao-app", "secret-id")}}}
    path = os.path.join(folder, "instance.json")
    with open(path, "w", encoding="ascii") as f:
        json.dump(conf, f)
    os.chmod(path, 0o600)
    os.environ["TDE_INSTANCE"] = folder


def product(port, app):
    """What the extension wrapped, the other client unwraps, with the database's UUID."""
    instance(port)
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(so)
    for name in ("tde", "chacha", "rsa"):
        path = os.path.join(box.name, name + ".db")
        protector = f"vault:https://bao.localtest/transit/keys/{name}".replace("/", "%2F")
        db = sqlite3.connect(f"file:{path}?vfs=tde&tde_protector={protector}", uri=True)
        db.execute("create table t(a)")
        db.commit()
        status = json.loads(db.execute("pragma tde_status").fetchone()[0])
        db.close()
        with open(path, "rb") as f:
            wrapped = re.search(rb'"wrapped":"([\w-]+)"', f.read()).group(1).decode()
        raw = base64.urlsafe_b64decode(wrapped + "=" * (-len(wrapped) % 4))
        ask = {"ciphertext": f"vault:v1:{b64(raw)}"}
        if name != "rsa":
            ask["associated_data"] = b64(b"sqlite-tde:" + status["uuid"].encode())
        reply = app.write(f"transit/decrypt/{name}", **ask)
        check(f"the extension's wrap under {name}", len(base64.b64decode(reply["data"]["plaintext"])) == 32)


child = subprocess.Popen([server, "--state", state, "--config", config]) if os.makedirs(state) is None else None
try:
    for _ in range(1200):
        if os.path.exists(os.path.join(state, "ready.json")):
            break
        time.sleep(0.1)
    https = json.loads(read("ready.json"))["https"]
    both = clients(https)
    engine(*both)
    product(https, both[1])
finally:
    child.terminate()
    child.wait()
print(f"{passed} passed, {failed} failed, 0 skipped")
sys.exit(1 if failed else 0)
