#!/usr/bin/env python3
"""The test key server, driven offline: what it says, and that its faults are faults.

    smoke.py SERVER CONFIG

Each test starts from a server without faults and with the real clock. The last
line is `N passed, N failed, N skipped`.
"""

import base64
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.parse

CONTOSO = "11111111-1111-4111-8111-111111111111"
FABRIKAM = "22222222-2222-4222-8222-222222222222"
RESOURCE = "https://vault.localtest"
HSM_RESOURCE = "https://managedhsm.localtest"


def client_id(n):
    return "a0000000-0000-4000-8000-%012x" % n


class Reply:
    def __init__(self, raw):
        self.status, self.headers, self.body = raw.status, raw.headers, raw.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def codes(self):
        error = self.json["error"]
        return self.status, error["code"], error.get("innererror", {}).get("code")


class Loopback(http.client.HTTPSConnection):
    """Connects to 127.0.0.1; the certificate is checked for the name that was asked for."""

    def connect(self):
        raw = socket.create_connection(("127.0.0.1", self.port), self.timeout)
        self.sock = self._context.wrap_socket(raw, server_hostname=self.host)


class Server:
    def __init__(self, program, config, cert="good"):
        self.dir = tempfile.TemporaryDirectory(prefix="keyvault-")
        self.process = subprocess.Popen(
            [program, "--state", self.dir.name, "--config", config, "--cert", cert],
            stdout=subprocess.DEVNULL)
        ready = os.path.join(self.dir.name, "ready.json")
        until = time.monotonic() + 60
        while not os.path.exists(ready):
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the server did not start")
            time.sleep(0.05)
        with open(ready) as f:
            self.ready = json.load(f)
        self.context = ssl.create_default_context(cafile=os.path.join(self.dir.name, "ca.pem"))
        self.tokens = {}

    def stop(self):
        self.process.terminate()
        rc = self.process.wait(30)
        self.dir.cleanup()
        return rc

    def secret(self, name, file="secret"):
        with open(os.path.join(self.dir.name, "identities", name, file)) as f:
            return f.read()

    def https(self, host, method, target, body=None, headers=None, timeout=10):
        c = Loopback(host, self.ready["https"], context=self.context, timeout=timeout)
        try:
            c.request(method, target, body, headers or {})
            return Reply(c.getresponse())
        finally:
            c.close()

    def plain(self, port, method, target, body=None, headers=None):
        c = http.client.HTTPConnection("127.0.0.1", self.ready[port], timeout=10)
        try:
            c.request(method, target, body, headers or {})
            return Reply(c.getresponse())
        finally:
            c.close()

    def admin(self, method, target, body=None):
        reply = self.plain("admin", method, "/admin/" + target, body and json.dumps(body))
        assert reply.status == 200, (target, reply.status, reply.body)
        return reply.json

    def fault(self, route, fault, **more):
        self.admin("POST", "fault", {"route": route, "fault": fault, **more})

    def ask_token(self, n, tenant=CONTOSO, scope=RESOURCE + "/.default", **credential):
        form = {"grant_type": "client_credentials", "client_id": client_id(n), "scope": scope,
                **credential}
        return self.https("login.localtest", "POST", "/%s/oauth2/v2.0/token" % tenant,
                          urllib.parse.urlencode(form))

    def token(self, name="app-secret", n=1):
        if name not in self.tokens:
            self.tokens[name] = self.ask_token(n, client_secret=self.secret(name)).json["access_token"]
        return self.tokens[name]

    def vault(self, method, path, body=None, token=None, vault="alpha", timeout=10,
              version="api-version=7.4"):
        headers = {"Authorization": "Bearer " + (token or self.token())}
        return self.https(vault + ".vault.localtest", method, path + "?" + version,
                          body and json.dumps(body), headers, timeout)

    def hsm_token(self):
        if "hsm" not in self.tokens:
            self.tokens["hsm"] = self.ask_token(1, scope=HSM_RESOURCE + "/.default",
                                                client_secret=self.secret("app-secret")).json["access_token"]
        return self.tokens["hsm"]

    def hsm(self, method, path, body=None, **more):
        return self.https("delta.managedhsm.localtest", method, path + "?api-version=7.4",
                          body and json.dumps(body), {"Authorization": "Bearer " + self.hsm_token()}, **more)

    def wrap(self, value="c2VjcmV0", **more):
        return self.vault("POST", "/keys/tde/wrapkey", {"alg": "RSA-OAEP-256", "value": value}, **more)

    def unwrap(self, value, **more):
        return self.vault("POST", "/keys/tde/unwrapkey", {"alg": "RSA-OAEP-256", "value": value}, **more)


# ---- what it says when all is well --------------------------------------------

def test_challenge(s):
    reply = s.https("beta.vault.localtest", "GET", "/keys/tde?api-version=7.4")
    assert reply.codes == (401, "Unauthorized", None)
    assert reply.headers["WWW-Authenticate"] == (
        'Bearer authorization="https://login.localtest:%d/%s", resource="%s"'
        % (s.ready["https"], CONTOSO, RESOURCE))
    assert len(reply.headers["x-ms-request-id"]) == 36


def test_paths(s):
    key = s.vault("GET", "/keys/tde").json["key"]
    version = key["kid"].split("/")[-1]
    for path in "/keys/tde/", "/keys/tde/" + version, "/keys/TDE":
        assert s.vault("GET", path).json["key"]["kid"] == key["kid"], path
    assert s.vault("GET", "/keys/tde", version="api%2Dversion=7.4").status == 200
    assert s.vault("GET", "/keys/tde", version="api-version=7.3").status == 400
    assert s.vault("GET", "/keys/tde", version="").status == 400
    assert s.vault("PUT", "/keys/tde/versions").status == 405
    assert s.vault("PUT", "/keys/tde").codes == (403, "Forbidden", "AccessDenied")
    assert s.vault("GET", "/secrets/tde").status == 404
    assert s.vault("GET", "/keys/a_b").status == 400
    wrapped = s.wrap().json
    for path in "/keys/tde/%s/unwrapkey" % version, "/keys/tde//unwrapkey", "/keys/tde/unwrapkey":
        back = s.vault("POST", path, {"alg": "RSA-OAEP-256", "value": wrapped["value"]}).json
        assert back == {"kid": key["kid"], "value": "c2VjcmV0"}, path


def test_bodies(s):
    for body in [], {"alg": "RSA1_5", "value": "c2VjcmV0"}, {"alg": "RSA-OAEP-256"}, {"alg": 1, "value": 2}, \
            {"alg": "RSA-OAEP-256", "value": "***"}, {"alg": "RSA-OAEP-256", "value": "A" * 4000}:
        reply = s.vault("POST", "/keys/tde/wrapkey", body or [0])
        assert reply.codes == (400, "BadParameter", None), body
    assert s.vault("POST", "/keys/big/create", {"kty": "RSA", "x": "A" * 300000}).status == 413
    assert s.vault("POST", "/keys/odd/create", {"kty": "RSA", "key_size": 1024}).status == 400
    assert s.vault("GET", "/keys/odd").status == 404


def test_managed_identity(s):
    query = "?api-version=2018-02-01&resource=https%3A%2F%2Fvault.localtest"
    path = "/metadata/identity/oauth2/token"
    yes = {"Metadata": "true"}
    for p in path, path + "/":
        reply = s.plain("http", "GET", p + query, headers=yes).json
        assert isinstance(reply["expires_in"], str)
        assert s.vault("GET", "/keys/tde", token=reply["access_token"]).status == 200
    assert s.plain("http", "GET", path + query).status == 400
    assert s.plain("http", "GET", path + query + "&client_id=none", headers=yes).status == 400
    query = query.replace("2018-02-01", "2019-08-01") + "&client_id=" + client_id(5)
    proof = {"X-IDENTITY-HEADER": s.ready["identity_header"]}
    assert s.plain("http", "GET", "/msi/token" + query).status == 401
    reply = s.plain("http", "GET", "/msi/token" + query, headers=proof).json
    assert s.vault("GET", "/keys/tde", token=reply["access_token"]).status == 200


def test_tokens(s):
    assert s.ask_token(1, client_secret="x").json["error_codes"] == [7000215]
    assert s.ask_token(1).json["error_codes"] == [7000216]
    assert s.ask_token(99, client_secret="x").json["error_codes"] == [700016]
    assert s.ask_token(1, tenant="other", client_secret="x").json["error_codes"] == [90002]
    good = s.secret("app-secret")
    assert s.ask_token(1, client_secret=good, scope="https://else/.default").json["error"] == "invalid_scope"
    kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    jwt = s.secret("app-workload", "federated-token")
    assert s.ask_token(3, client_assertion=jwt, client_assertion_type=kind).status == 200
    head, claims, signature = jwt.split(".")
    forged = ".".join([head, claims, ("B" if signature[0] == "A" else "A") + signature[1:]])
    assert s.ask_token(3, client_assertion=forged, client_assertion_type=kind).json["error_codes"] == [700213]
    assert s.ask_token(6, client_assertion=jwt, client_assertion_type=kind).json["error_codes"] == [700213]
    s.admin("POST", "federated-token", {"identity": "app-workload", "seconds": -10})
    jwt = s.secret("app-workload", "federated-token")
    assert s.ask_token(3, client_assertion=jwt, client_assertion_type=kind).json["error_codes"] == [700024]


def test_forged_and_foreign_tokens(s):
    token = s.token()
    head, claims, signature = token.split(".")
    pad = "=" * (-len(claims) % 4)
    changed = json.loads(base64.urlsafe_b64decode(claims + pad))
    changed["appid"] = client_id(2)
    changed = base64.urlsafe_b64encode(json.dumps(changed).encode()).decode().rstrip("=")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    for bad in "x", "a.b.c", ".".join([head, changed, signature]), ".".join([none, claims, ""]):
        assert s.vault("GET", "/keys/tde", token=bad).status == 401, bad
    assert s.vault("GET", "/keys/tde", vault="gamma").status == 401
    exchange = s.ask_token(1, client_secret=s.secret("app-secret"), scope="api://AzureADTokenExchange/.default")
    assert s.vault("GET", "/keys/tde", token=exchange.json["access_token"]).status == 401


def test_clock_and_revocation(s):
    s.tokens.clear()
    s.token()
    s.admin("POST", "clock", {"advance": 3500})
    assert s.vault("GET", "/keys/tde").status == 200
    s.admin("POST", "clock", {"advance": 100})
    assert s.vault("GET", "/keys/tde").status == 401
    s.admin("POST", "clock", {"reset": True})
    assert s.vault("GET", "/keys/tde").status == 200
    s.admin("POST", "tokens/revoke")
    assert s.vault("GET", "/keys/tde").status == 401
    s.tokens.clear()
    assert s.vault("GET", "/keys/tde").status == 200


def unhex(text):
    return base64.urlsafe_b64encode(bytes.fromhex(text)).decode().rstrip("=")


def test_managed_hsm(s):
    reply = s.https("delta.managedhsm.localtest", "GET", "/keys/tde?api-version=7.4")
    assert reply.status == 401 and reply.body == b"" and 'resource="%s"' % HSM_RESOURCE in \
        reply.headers["WWW-Authenticate"]
    # A vault's token is none of the HSM's, and a vault is not found under its domain.
    at = "delta.managedhsm.localtest"
    assert s.https(at, "GET", "/keys/tde?api-version=7.4",
                   headers={"Authorization": "Bearer " + s.token()}).status == 401
    assert s.https("delta.vault.localtest", "GET", "/keys/tde?api-version=7.4").status == 404
    assert s.https("alpha.managedhsm.localtest", "GET", "/keys/tde?api-version=7.4").status == 404
    key = s.hsm("GET", "/keys/tde").json
    assert key["key"]["kty"] == "oct-HSM" and "n" not in key["key"] and "k" not in key["key"]
    assert key["attributes"]["exportable"] is False
    assert s.hsm("GET", "/keys/rsa").json["key"]["kty"] == "RSA-HSM"
    assert s.hsm("POST", "/keys/made/create", {"kty": "oct-HSM", "key_size": 64}).status == 400
    assert s.vault("POST", "/keys/made/create", {"kty": "oct-HSM"}).status == 400
    assert s.hsm("POST", "/keys/small/create", {"kty": "oct", "key_size": 128}).json["key"]["kty"] == "oct-HSM"
    value = {"value": unhex("00" * 32)}
    assert s.hsm("POST", "/keys/small/wrapkey", {"alg": "A256KW", **value}).status == 400
    assert s.hsm("POST", "/keys/small/wrapkey", {"alg": "A128KW", **value}).status == 200
    assert s.hsm("POST", "/keys/tde/wrapkey", {"alg": "RSA-OAEP-256", **value}).status == 400
    assert s.hsm("POST", "/keys/rsa/wrapkey", {"alg": "A256KW", **value}).status == 400
    assert s.hsm("POST", "/keys/tde/wrapkey", {"alg": "A256KW", "value": "AAAA"}).status == 400


def test_aes_key_wrap_vectors(s):
    """RFC 3394, sections 4.1, 4.4 and 4.6."""
    kek = "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F"
    data = "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F"
    for bits, size, wrapped in (
            (128, 16, "1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5"),
            (192, 24, "031D33264E15D33268F24EC260743EDCE1C6C7DDEE725A936BA814915C6762D2"),
            (256, 32, "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21")):
        name = "/keys/rfc3394-%d" % bits
        alg = "A%dKW" % bits
        jwk = {"kty": "oct-HSM", "k": unhex(kek[:bits // 4])}
        assert s.hsm("PUT", name, {"key": jwk}).status == 200
        reply = s.hsm("POST", name + "/wrapkey", {"alg": alg, "value": unhex(data[:size * 2])}).json
        assert reply["value"] == unhex(wrapped) and reply["alg"] == alg, reply
        back = s.hsm("POST", name + "/unwrapkey", {"alg": alg, "value": unhex(wrapped)}).json
        assert back["value"] == unhex(data[:size * 2])
        bent = unhex(wrapped[:-1] + ("1" if wrapped[-1] == "0" else "0"))
        assert s.hsm("POST", name + "/unwrapkey", {"alg": alg, "value": bent}).status == 400


def test_grants(s):
    s.admin("POST", "grant", {"vault": "alpha", "identity": "nobody", "permissions": ["get", "wrapKey"]})
    token = s.token("nobody", 10)
    assert s.vault("GET", "/keys/tde", token=token).status == 200
    s.admin("POST", "grant", {"vault": "alpha", "identity": "nobody", "permissions": []})
    assert s.vault("GET", "/keys/tde", token=token).codes == (403, "Forbidden", "AccessDenied")
    assert s.vault("GET", "/keys/tde", token=token, vault="beta").codes == (403, "Forbidden", "ForbiddenByRbac")


def test_retention_ends_in_a_purge(s):
    assert s.vault("POST", "/keys/short/create", {"kty": "RSA"}, vault="beta").status == 200
    assert s.vault("DELETE", "/keys/short", vault="beta").status == 200
    assert s.vault("DELETE", "/deletedkeys/short", vault="beta").status == 403
    s.admin("POST", "clock", {"advance": 7 * 86400})
    s.tokens.clear()
    assert s.vault("GET", "/deletedkeys/short", vault="beta").status == 404
    assert s.vault("POST", "/keys/short/create", {"kty": "RSA"}, vault="beta").status == 200
    s.tokens.clear()


def test_log(s):
    s.admin("DELETE", "log")
    reply = s.wrap()
    entry = s.admin("GET", "log?operation=wrapKey")["entries"]
    assert len(entry) == 1 and entry[0]["request_id"] == reply.headers["x-ms-request-id"]
    assert entry[0]["identity"] == "app-secret" and entry[0]["status"] == 200
    assert s.admin("GET", "count?operation=wrapKey")["count"] == 1
    assert s.admin("GET", "log?since=%d" % entry[0]["seq"])["entries"] == []
    text = json.dumps(s.admin("GET", "log"))
    assert "eyJ" not in text and s.secret("app-secret") not in text and "c2VjcmV0" not in text


# ---- faults ---------------------------------------------------------------------

def failing(call):
    try:
        call()
    except (http.client.HTTPException, OSError) as e:
        return e
    raise AssertionError("the call must fail")


def test_fault_statuses(s):
    for status in 401, 403, 404, 409, 429, 500, 503:
        s.fault("wrapKey", str(status), times=1, retry_after=3)
        reply = s.wrap()
        assert reply.status == status and reply.headers["Retry-After"] == "3"
        assert ("WWW-Authenticate" in reply.headers) == (status == 401)
    s.fault("wrapKey", "status", status=403, code="Forbidden", inner="KeyDisabled", times=1)
    assert s.wrap().codes == (403, "Forbidden", "KeyDisabled")
    s.fault("wrapKey", "429", times=1)
    assert "Retry-After" not in s.wrap().headers
    assert s.wrap().status == 200


def test_fault_counts(s):
    s.fault("wrapKey", "500", after=1, times=2, vault="alpha")
    assert s.wrap(vault="beta").status == 200
    assert [s.wrap().status for _ in range(4)] == [200, 500, 500, 200]
    assert s.admin("GET", "fault")["faults"][0]["fired"] == 2
    assert s.plain("admin", "POST", "/admin/fault", '{"route":"*","fault":"nonsense"}').status == 400
    assert s.plain("admin", "POST", "/admin/fault", '{"route":"nonsense","fault":"500"}').status == 400
    assert s.plain("admin", "POST", "/admin/fault", '{"route":"*","fault":"500","tmes":1}').status == 400


def test_fault_before_authentication(s):
    s.fault("getKey", "503", times=1)
    assert s.https("alpha.vault.localtest", "GET", "/keys/tde?api-version=7.4").status == 401
    assert s.vault("GET", "/keys/tde").status == 503
    s.fault("getKey", "503", times=1, any=True)
    assert s.https("alpha.vault.localtest", "GET", "/keys/tde?api-version=7.4").status == 503
    s.fault("token", "500", times=1)
    assert s.ask_token(1, client_secret="x").status == 500
    s.fault("imds", "429", times=1)
    assert s.plain("http", "GET", "/metadata/identity/oauth2/token").status == 429


def test_fault_connection(s):
    s.fault("getKey", "refuse", times=1)
    failing(lambda: s.vault("GET", "/keys/tde"))
    s.fault("getKey", "truncated", times=1)
    assert isinstance(failing(lambda: s.vault("GET", "/keys/tde")), (http.client.IncompleteRead, OSError))
    s.fault("getKey", "hang", times=1)
    began = time.monotonic()
    assert isinstance(failing(lambda: s.vault("GET", "/keys/tde", timeout=0.7)), TimeoutError)
    assert time.monotonic() - began >= 0.6
    assert s.vault("GET", "/keys/tde").status == 200  # others go on meanwhile
    s.fault("getKey", "slow", ms=400, times=1)
    began = time.monotonic()
    assert s.vault("GET", "/keys/tde").status == 200 and time.monotonic() - began >= 0.4
    s.fault("wrapKey", "drip", ms=1, times=1)
    began = time.monotonic()
    assert len(s.wrap().body) > 300 and time.monotonic() - began >= 0.3


def test_fault_content(s):
    wrapped = s.wrap().json
    s.fault("unwrapKey", "flip", times=1)
    bent = s.unwrap(wrapped["value"]).json["value"]
    assert bent != "c2VjcmV0" and len(bent) == 8
    s.fault("unwrapKey", "wrong-kid", times=1)
    assert s.unwrap(wrapped["value"]).json["kid"] != wrapped["kid"]
    for fault in "flip", "wrong-kid":
        right = s.vault("GET", "/keys/tde").json["key"]
        s.fault("getKey", fault, times=1)
        assert s.vault("GET", "/keys/tde").json["key"] != right
    s.fault("getKey", "not-json", times=1)
    assert b"<html>" in s.vault("GET", "/keys/tde").body
    s.fault("getKey", "empty", times=1)
    assert s.vault("GET", "/keys/tde").body == b""
    s.fault("getKey", "oversized", bytes=3000000, times=1)
    assert len(s.vault("GET", "/keys/tde").body) > 3000000
    s.fault("getKey", "redirect", times=1)
    reply = s.vault("GET", "/keys/tde")
    assert reply.status == 307 and reply.headers["Location"].startswith("https://elsewhere.")


def test_fault_of_tokens(s):
    secret = s.secret("app-secret")
    s.fault("token", "401", times=1)
    reply = s.ask_token(1, client_secret=secret)
    assert reply.status == 401 and reply.json["error_codes"] == [900401]
    assert "WWW-Authenticate" not in reply.headers
    s.fault("token", "flip", times=1)
    bent = s.ask_token(1, client_secret=secret).json["access_token"]
    assert s.vault("GET", "/keys/tde", token=bent).status == 401
    s.fault("imds", "status", status=410, code="gone", times=1)
    reply = s.plain("http", "GET", "/metadata/identity/oauth2/token")
    assert reply.status == 410 and reply.json["error"] == "gone"


def test_fault_in_lists(s):
    kid = s.vault("GET", "/keys/tde/versions").json["value"][0]["kid"]
    for part, at in ("version", -1), ("name", -2):
        s.fault("listVersions", "wrong-kid", part=part, times=1)
        bent = s.vault("GET", "/keys/tde/versions").json["value"][0]["kid"]
        differs = [i for i, (a, b) in enumerate(zip(kid.split("/"), bent.split("/"))) if a != b]
        assert differs == [len(kid.split("/")) + at], bent


def test_listener_closed(s):
    s.admin("POST", "listen", {"https": False})
    assert isinstance(failing(lambda: s.vault("GET", "/keys/tde", token="x")), ConnectionRefusedError)
    s.admin("POST", "listen", {"https": True})
    assert s.vault("GET", "/keys/tde").status == 200


def test_certificates(s):
    for cert, why in ("expired", "expired"), ("wrong-host", "ostname"), ("unknown-ca", "self-signed"):
        s.admin("POST", "listen", {"https": True, "cert": cert})
        e = failing(lambda: s.vault("GET", "/keys/tde", token="x"))
        assert isinstance(e, ssl.SSLCertVerificationError) and why in str(e), e
    assert s.plain("admin", "POST", "/admin/listen", '{"https":true,"cert":"odd"}').status == 400
    s.admin("POST", "listen", {"https": True, "cert": "good"})
    assert s.vault("GET", "/keys/tde").status == 200


def starts_with(program, cert):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump({"tenants": [], "identities": [],
                   "vaults": [{"name": "alpha", "tenant": CONTOSO, "grants": {}}]}, f)
        f.flush()
        s = Server(program, f.name, cert)
    try:
        e = failing(lambda: s.https("alpha.vault.localtest", "GET", "/keys?api-version=7.4"))
        assert isinstance(e, ssl.SSLCertVerificationError), e
    finally:
        assert s.stop() == 0


def main():
    program, config = sys.argv[1:]
    server = Server(program, config)
    tests = [(n[5:].replace("_", " "), f) for n, f in globals().items() if n.startswith("test_")]
    runs = [(n, lambda f=f: f(server)) for n, f in tests]
    runs.append(("started with --cert expired", lambda: starts_with(program, "expired")))

    def ends():
        assert server.stop() == 0
    runs.append(("the server ends well", ends))
    passed = failed = 0
    for name, run in runs:
        try:
            if server.process.poll() is None:
                server.admin("DELETE", "fault")
                server.admin("POST", "clock", {"reset": True})
            run()
            passed += 1
        except Exception as e:  # any failure is the test's, the others go on
            failed += 1
            where = e.__traceback__
            while where.tb_next:
                where = where.tb_next
            print("FAILED: %s: %r (line %d)" % (name, e, where.tb_lineno))
    print("%d passed, %d failed, 0 skipped" % (passed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
