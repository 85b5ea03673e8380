/*
** test.cjs: Microsoft's clients against the test key server.
**
** Run by run.sh, which starts the server and sets KV_* as in its env.sh, and
** NODE_EXTRA_CA_CERTS. The packages' own checks stay on: TLS, and that the
** challenge's resource fits the vault's host. Prints a line for each test that
** fails, and the totals.
*/
'use strict';
const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { spawnSync } = require('node:child_process');
const { KeyClient, CryptographyClient } = require('@azure/keyvault-keys');
const { ClientSecretCredential, ClientCertificateCredential, WorkloadIdentityCredential,
  ManagedIdentityCredential, ClientAssertionCredential } = require('@azure/identity');

const { KV_STATE, KV_HTTPS, KV_HTTP, KV_ADMIN, KV_AUTHORITY, KV_IDENTITY_HEADER, KV_CA, KV_CLIENT } = process.env;
const contoso = '11111111-1111-4111-8111-111111111111';
const fabrikam = '22222222-2222-4222-8222-222222222222';
const clientId = (n) => `a0000000-0000-4000-8000-${n.toString(16).padStart(12, '0')}`;
const ofIdentity = (name, file) => path.join(KV_STATE, 'identities', name, file);
const secretOf = (name) => fs.readFileSync(ofIdentity(name, 'secret'), 'utf8');
const authority = { authorityHost: KV_AUTHORITY, disableInstanceDiscovery: true };
const vaultUrl = (name) => `https://${name}.${name === 'delta' ? 'managedhsm' : 'vault'}.localtest:${KV_HTTPS}`;
const version = { serviceVersion: '7.4' };
const quick = { ...version, retryOptions: { maxRetries: 0 } };

const bySecret = (n, name, tenant = contoso) =>
  new ClientSecretCredential(tenant, clientId(n), secretOf(name), authority);
const client = (vault, credential, options = version) =>
  new KeyClient(vaultUrl(vault), credential, options);
const crypt = (keyId, credential, options = quick) =>
  new CryptographyClient(keyId, credential, options);

async function admin(method, route, body) {
  const reply = await fetch(`http://127.0.0.1:${KV_ADMIN}/admin/${route}`,
    { method, body: body && JSON.stringify(body) });

  assert.equal(reply.status, 200, `admin ${route}`);
  return reply.json();
}
const count = async (operation) => (await admin('GET', `count?operation=${operation}`)).count;

/* The error of a call that must fail, with status and, when given, inner code. */
async function refused(promise, status, inner) {
  const error = await promise.then(() => null, (e) => e);

  assert.ok(error, 'the call must fail');
  assert.equal(error.statusCode, status, String(error.message).slice(0, 300));
  if (inner) assert.equal(error.details?.error?.innerError?.code, inner);
  return error;
}

async function collect(iterator) {
  const out = [];

  for await (const item of iterator) out.push(item);
  return out;
}

const dek = crypto.randomBytes(32);
const all = bySecret(1, 'app-secret');
const alpha = client('alpha', all);
const beta = client('beta', all, quick);
const hsm = client('delta', all, quick);

/* A credential of another kind reads a key, wraps and unwraps. */
async function serves(vault, credential) {
  const key = await client(vault, credential).getKey('tde');
  const c = crypt(key.id, credential);
  const wrapped = await c.wrapKey('RSA-OAEP-256', dek);
  const back = await c.unwrapKey('RSA-OAEP-256', wrapped.result);

  assert.deepEqual(Buffer.from(back.result), dek);
  assert.equal(wrapped.keyID, key.id);
}

/* ---- the product, as a command with an instance of its own ---- */

const instanceDir = path.join(KV_STATE, 'product');

function makeInstance() {
  fs.mkdirSync(instanceDir, { mode: 0o700 });
  fs.writeFileSync(path.join(instanceDir, 'instance.json'), JSON.stringify({
    version: 1, default_protector: `${vaultUrl('beta')}/keys/tde`,
    http: { ca_file: KV_CA, connect_to: `127.0.0.1:${KV_HTTPS}` },
    azure: { authority: KV_AUTHORITY, vault_suffixes: ['vault.localtest', 'managedhsm.localtest'] },
    policy: { allow_purgeable_keys: true },
    identities: { app: { kind: 'client_secret', client_id: clientId(1), secret_file: ofIdentity('app-secret', 'secret') } },
  }), { mode: 0o600 });
}

/* The product's answer; value is a Buffer. */
function product(keyId, operation, value, algorithm = '') {
  const run = spawnSync(KV_CLIENT, [instanceDir, keyId, operation, 'app', algorithm],
    { input: value ? Buffer.from(value).toString('base64url') : '', encoding: 'utf8' });
  const answer = JSON.parse(run.stdout);

  if (answer.value) answer.value = Buffer.from(answer.value, 'base64url');
  return answer;
}

/* What the one wraps, the other unwraps, both ways; and both see the same key. */
async function together(keyClient, name, algorithm) {
  const key = await keyClient.getKey(name);
  const microsoft = crypt(key.id, all);
  const mine = crypto.randomBytes(32);
  const wrapped = product(key.id, 'wrap', mine);

  assert.equal(wrapped.error, undefined, wrapped.message);
  assert.equal(wrapped.algorithm, algorithm);
  assert.equal(wrapped.version, key.properties.version);
  assert.deepEqual(Buffer.from((await microsoft.unwrapKey(algorithm, wrapped.value)).result), mine);
  const theirs = Buffer.from((await microsoft.wrapKey(algorithm, dek)).result);
  assert.deepEqual(product(key.id, 'unwrap', theirs, algorithm).value, dek);
  theirs[10] ^= 1;
  assert.equal(product(key.id, 'unwrap', theirs, algorithm).error, 'wrong-key');
  await refused(microsoft.unwrapKey(algorithm, theirs), 400);
  return product(`${keyClient.vaultUrl.replace(/\/$/, '')}/keys/${name}`, 'latest');
}

const tests = {
  'get: latest and by version'() {
    return alpha.getKey('tde').then(async (key) => {
      assert.equal(key.keyType, 'RSA');
      assert.equal(key.key.n.length, 256);
      assert.equal(key.properties.enabled, true);
      assert.equal(key.properties.recoveryLevel, 'Recoverable+Purgeable');
      assert.match(key.properties.version, /^[0-9a-f]{32}$/);
      const same = await alpha.getKey('tde', { version: key.properties.version });
      assert.equal(same.id, key.id);
    });
  },

  async 'get: a key or version that is not there'() {
    assert.equal((await refused(alpha.getKey('absent'), 404)).code, 'KeyNotFound');
    await refused(alpha.getKey('tde', { version: '0'.repeat(32) }), 404);
  },

  async 'wrap and unwrap with RSA-OAEP-256 are done by the server'() {
    const key = await alpha.getKey('tde');
    const c = crypt(key.id, all);
    const before = [await count('wrapKey'), await count('unwrapKey')];
    const wrapped = await c.wrapKey('RSA-OAEP-256', dek);
    const back = await c.unwrapKey('RSA-OAEP-256', wrapped.result);

    assert.deepEqual(Buffer.from(back.result), dek);
    assert.notDeepEqual(Buffer.from(wrapped.result), dek);
    assert.equal(wrapped.result.length, 256);
    assert.ok(await count('wrapKey') > before[0] && await count('unwrapKey') > before[1]);
  },

  async 'what another implementation wraps with the public key, the server unwraps'() {
    const key = await beta.getKey('tde');
    const pub = crypto.createPublicKey({ format: 'jwk', key: { kty: 'RSA',
      n: Buffer.from(key.key.n).toString('base64url'), e: Buffer.from(key.key.e).toString('base64url') } });

    for (const [alg, oaepHash] of [['RSA-OAEP-256', 'sha256'], ['RSA-OAEP', 'sha1']]) {
      const wrapped = crypto.publicEncrypt({ key: pub, oaepHash }, dek);
      const back = await crypt(key.id, all).unwrapKey(alg, wrapped);

      assert.deepEqual(Buffer.from(back.result), dek);
      const other = alg === 'RSA-OAEP' ? 'RSA-OAEP-256' : 'RSA-OAEP';
      await refused(crypt(key.id, all).unwrapKey(other, wrapped), 400);
    }
  },

  async 'RSA1_5 and a damaged value are refused'() {
    const c = crypt((await alpha.getKey('tde')).id, all);
    const wrapped = Buffer.from((await c.wrapKey('RSA-OAEP-256', dek)).result);

    wrapped[100] ^= 1;
    await refused(c.unwrapKey('RSA-OAEP-256', wrapped), 400);
    await refused(c.unwrapKey('RSA1_5', wrapped), 400);
  },

  async 'create, rotate, versions in pages'() {
    const first = await alpha.createRsaKey('paged', { keySize: 2048, tags: { of: 'test' } });

    await alpha.createRsaKey('paged');
    const third = await alpha.rotateKey('paged');
    assert.notEqual(first.properties.version, third.properties.version);
    const found = await collect(alpha.listPropertiesOfKeyVersions('paged'));
    assert.equal(found.length, 3);
    assert.ok(found.some((p) => p.version === third.properties.version));
    const pages = await collect(alpha.listPropertiesOfKeyVersions('paged').byPage({ maxPageSize: 2 }));
    assert.deepEqual(pages.map((p) => p.length), [2, 1]);
    assert.equal((await alpha.getKey('paged')).properties.version, third.properties.version);
    assert.equal(first.properties.tags.of, 'test');
    const names = (await collect(alpha.listPropertiesOfKeys())).map((p) => p.name);
    assert.ok(names.includes('paged') && names.includes('tde'));
  },

  async 'an old version unwraps after a rotation'() {
    const old = await alpha.createRsaKey('turned');
    const wrapped = (await crypt(old.id, all).wrapKey('RSA-OAEP-256', dek)).result;
    const now = await alpha.rotateKey('turned');

    assert.deepEqual(Buffer.from((await crypt(old.id, all).unwrapKey('RSA-OAEP-256', wrapped)).result), dek);
    await refused(crypt(now.id, all).unwrapKey('RSA-OAEP-256', wrapped), 400);
  },

  /* The crypto client looks at a fetched key itself; the server shall be asked. */
  async 'disable and enable'() {
    const key = await alpha.createRsaKey('off');
    const c = crypt(key.id, all);
    const wrapped = (await c.wrapKey('RSA-OAEP-256', dek)).result;
    const off = await alpha.updateKeyProperties('off', key.properties.version, { enabled: false });

    assert.equal(off.properties.enabled, false);
    assert.equal((await alpha.getKey('off')).properties.enabled, false);
    const seen = (await admin('GET', 'log')).entries.at(-1).seq;
    await assert.rejects(c.unwrapKey('RSA-OAEP-256', wrapped));
    await refused(crypt(key.id, all).unwrapKey('RSA-OAEP-256', wrapped), 403, 'KeyDisabled');
    const asked = (await admin('GET', `log?since=${seen}&operation=unwrapKey`)).entries;
    assert.ok(asked.some((e) => e.status === 403));
    await alpha.updateKeyProperties('off', key.properties.version, { enabled: true });
    assert.deepEqual(Buffer.from((await crypt(key.id, all).unwrapKey('RSA-OAEP-256', wrapped)).result), dek);
  },

  async 'not before and expiry: wrap refused, unwrap allowed'() {
    const key = await alpha.createRsaKey('dated', { expiresOn: new Date(Date.now() + 3600e3) });
    const wrapped = (await crypt(key.id, all).wrapKey('RSA-OAEP-256', dek)).result;

    await admin('POST', 'clock', { advance: 7200 });
    try {
      const later = bySecret(1, 'app-secret'); /* the old token has expired, too */
      await refused(crypt(key.id, later).wrapKey('RSA-OAEP-256', dek), 403, 'KeyExpired');
      assert.deepEqual(Buffer.from((await crypt(key.id, later).unwrapKey('RSA-OAEP-256', wrapped)).result), dek);
    } finally {
      await admin('POST', 'clock', { reset: true });
    }
    /* The client looks at nbf itself: so it is the server that lives in the past. */
    const early = await alpha.createRsaKey('early', { notBefore: new Date(Date.now() - 60e3) });
    await admin('POST', 'clock', { advance: -3600 });
    try {
      await refused(crypt(early.id, all).wrapKey('RSA-OAEP-256', dek), 403, 'KeyNotYetValid');
    } finally {
      await admin('POST', 'clock', { reset: true });
    }
  },

  async 'delete, the name is taken, recover'() {
    const key = await alpha.createRsaKey('kept');
    const wrapped = (await crypt(key.id, all).wrapKey('RSA-OAEP-256', dek)).result;
    const deleted = await (await alpha.beginDeleteKey('kept', { intervalInMs: 50 })).pollUntilDone();

    assert.ok(deleted.properties.recoveryId && deleted.properties.scheduledPurgeDate > new Date());
    await refused(alpha.getKey('kept'), 404);
    await refused(crypt(key.id, all).unwrapKey('RSA-OAEP-256', wrapped), 404);
    await refused(alpha.createRsaKey('kept'), 409, 'ObjectIsDeletedButRecoverable');
    assert.equal((await alpha.getDeletedKey('kept')).name, 'kept');
    assert.ok((await collect(alpha.listDeletedKeys())).some((k) => k.name === 'kept'));
    const back = await (await alpha.beginRecoverDeletedKey('kept', { intervalInMs: 50 })).pollUntilDone();
    assert.equal(back.name, 'kept');
    assert.deepEqual(Buffer.from((await crypt(key.id, all).unwrapKey('RSA-OAEP-256', wrapped)).result), dek);
  },

  async 'purge; purge protection'() {
    await alpha.createRsaKey('gone');
    await (await alpha.beginDeleteKey('gone', { intervalInMs: 50 })).pollUntilDone();
    await alpha.purgeDeletedKey('gone');
    await refused(alpha.getDeletedKey('gone'), 404);
    await alpha.createRsaKey('gone');

    assert.equal((await beta.createRsaKey('safe')).properties.recoveryLevel, 'CustomizedRecoverable');
    assert.equal((await hsm.getKey('rsa')).properties.recoveryLevel, 'Recoverable');
    await (await beta.beginDeleteKey('safe', { intervalInMs: 50 })).pollUntilDone();
    await refused(beta.purgeDeletedKey('safe'), 403);
    await (await beta.beginRecoverDeletedKey('safe', { intervalInMs: 50 })).pollUntilDone();
  },

  async 'Managed HSM: symmetric keys are made, imported, rotated, and wrap with A256KW in the HSM'() {
    const made = await hsm.createOctKey('made', { keySize: 256, hsm: true });
    assert.equal(made.keyType, 'oct-HSM');
    assert.equal(made.key.k, undefined);
    const before = [await count('wrapKey'), await count('unwrapKey')];
    const wrapped = (await crypt(made.id, all).wrapKey('A256KW', dek)).result;
    assert.equal(wrapped.length, 40);
    assert.deepEqual(Buffer.from((await crypt(made.id, all).unwrapKey('A256KW', wrapped)).result), dek);
    assert.ok(await count('wrapKey') > before[0] && await count('unwrapKey') > before[1]);
    const turned = await hsm.rotateKey('made');
    await refused(crypt(turned.id, all).unwrapKey('A256KW', wrapped), 400);
    assert.equal((await collect(hsm.listPropertiesOfKeyVersions('made'))).length, 2);
    assert.deepEqual(Buffer.from((await crypt(made.id, all).unwrapKey('A256KW', wrapped)).result), dek);
    await refused(client('alpha', all, quick).createOctKey('no'), 400);
  },

  /* RFC 3394 in Node's OpenSSL, on a key that both know. */
  async 'Managed HSM: what it wraps, another implementation of AES key wrap unwraps'() {
    const k = crypto.randomBytes(32);
    const key = await hsm.importKey('known', { kty: 'oct-HSM', k, keyOps: ['wrapKey', 'unwrapKey'] }, { hardwareProtected: true });
    const wrapped = Buffer.from((await crypt(key.id, all).wrapKey('A256KW', dek)).result);
    const turn = crypto.createDecipheriv('id-aes256-wrap', k, Buffer.alloc(8, 0xa6));

    assert.deepEqual(Buffer.concat([turn.update(wrapped), turn.final()]), dek);
    assert.deepEqual(product(key.id, 'unwrap', wrapped, 'A256KW').value, dek);
  },

  async 'the product: RSA keys'() {
    for (const [keyClient, size] of [[alpha, 2048], [beta, 3072]]) {
      const facts = await together(keyClient, 'tde', 'RSA-OAEP-256');
      const key = (await keyClient.getKey('tde')).key;
      const jwk = JSON.stringify({ e: Buffer.from(key.e).toString('base64url'), kty: 'RSA',
        n: Buffer.from(key.n).toString('base64url') });

      assert.equal(facts.type, `RSA-${size}`);
      assert.equal(facts.thumbprint, crypto.createHash('sha256').update(jwk).digest('hex'));
    }
    await alpha.createRsaKey('big', { keySize: 4096 });
    assert.equal((await together(alpha, 'big', 'RSA-OAEP-256')).type, 'RSA-4096');
    assert.equal((await together(hsm, 'rsa', 'RSA-OAEP-256')).type, 'RSA-HSM-3072');
  },

  async 'the product: symmetric keys of Managed HSM'() {
    assert.equal((await together(hsm, 'tde', 'A256KW')).type, 'oct-HSM');
    await hsm.createOctKey('small', { keySize: 128, hsm: true });
    assert.equal(product(`${vaultUrl('delta')}/keys/small`, 'wrap', dek).error, 'unsupported');
  },

  async 'the product: versions in pages, as Microsoft lists them'() {
    for (let i = 0; i < 30; i++) await hsm.createOctKey('many', { keySize: 256, hsm: true });
    const theirs = await collect(hsm.listPropertiesOfKeyVersions('many'));
    await hsm.updateKeyProperties('many', theirs[3].version, { enabled: false, notBefore: new Date(1e12), expiresOn: new Date(2e12) });
    const before = await count('listVersions');
    const mine = product(`${vaultUrl('delta')}/keys/many`, 'versions').versions;

    assert.ok(await count('listVersions') >= before + 2, 'more than one page');
    assert.deepEqual(mine.map((v) => v.version).sort(), theirs.map((p) => p.version).sort());
    const changed = mine.find((v) => v.version === theirs[3].version);
    assert.deepEqual([changed.enabled, changed.not_before, changed.expires], [false, 1e9, 2e9]);
    assert.ok(mine.every((v, i) => i === 0 || mine[i - 1].created >= v.created));
    assert.equal(product(`${vaultUrl('delta')}/keys/absent`, 'versions').error, 'missing');
  },

  async 'the product: an old version after a rotation; disabled, deleted, recovered'() {
    const first = await alpha.createRsaKey('life');
    const wrapped = product(first.id, 'wrap', dek).value;

    await alpha.rotateKey('life');
    assert.deepEqual(product(first.id, 'unwrap', wrapped).value, dek);
    await alpha.updateKeyProperties('life', first.properties.version, { enabled: false });
    assert.equal(product(first.id, 'unwrap', wrapped).error, 'disabled');
    await alpha.updateKeyProperties('life', first.properties.version, { enabled: true });
    await (await alpha.beginDeleteKey('life', { intervalInMs: 50 })).pollUntilDone();
    assert.equal(product(first.id, 'unwrap', wrapped).error, 'missing');
    await (await alpha.beginRecoverDeletedKey('life', { intervalInMs: 50 })).pollUntilDone();
    assert.deepEqual(product(first.id, 'unwrap', wrapped).value, dek);
  },

  async 'permissions: access policy and RBAC'() {
    const reader = bySecret(7, 'reader');
    const ids = { alpha: (await alpha.getKey('tde')).id, beta: (await beta.getKey('tde')).id };

    assert.equal((await client('alpha', reader).getKey('tde')).id, ids.alpha);
    await refused(crypt(ids.alpha, reader).wrapKey('RSA-OAEP-256', dek), 403, 'AccessDenied');
    await refused(crypt(ids.beta, reader).wrapKey('RSA-OAEP-256', dek), 403, 'ForbiddenByRbac');
    const wrapped = (await crypt(ids.alpha, all).wrapKey('RSA-OAEP-256', dek)).result;
    const half = bySecret(8, 'no-unwrap');
    await crypt(ids.alpha, half).wrapKey('RSA-OAEP-256', dek);
    await refused(crypt(ids.alpha, half).unwrapKey('RSA-OAEP-256', wrapped), 403, 'AccessDenied');
    await refused(client('alpha', bySecret(10, 'nobody')).getKey('tde'), 403, 'AccessDenied');
  },

  async 'a wrong secret, an unknown tenant'() {
    const wrong = new ClientSecretCredential(contoso, clientId(1), 'wrong', authority);

    await assert.rejects(client('alpha', wrong, quick).getKey('tde'), /AADSTS7000215/);
    await assert.rejects(bySecret(1, 'app-secret', fabrikam).getToken('https://vault.localtest/.default'), /AADSTS700016/);
  },

  'identity: client certificate'() {
    return serves('alpha', new ClientCertificateCredential(contoso, clientId(2),
      ofIdentity('app-cert', 'certificate.pem'), authority));
  },

  async 'identity: a certificate that is not registered'() {
    const other = new ClientCertificateCredential(contoso, clientId(3), ofIdentity('app-cert', 'certificate.pem'), authority);

    await assert.rejects(client('alpha', other, quick).getKey('tde'), /AADSTS/);
  },

  'identity: workload (token file)'() {
    return serves('alpha', new WorkloadIdentityCredential({ ...authority, tenantId: contoso,
      clientId: clientId(3), tokenFilePath: ofIdentity('app-workload', 'federated-token') }));
  },

  async 'identity: managed, IMDS, the system\'s own'() {
    process.env.AZURE_POD_IDENTITY_AUTHORITY_HOST = `http://127.0.0.1:${KV_HTTP}`;
    await serves('alpha', new ManagedIdentityCredential());
    assert.ok(await count('imds') > 0);
  },

  /* In a process of its own: the package looks at the environment once. */
  async 'identity: managed, App Service, by client id'() {
    const env = { ...process.env, IDENTITY_ENDPOINT: `http://127.0.0.1:${KV_HTTP}/msi/token`,
      IDENTITY_HEADER: KV_IDENTITY_HEADER };
    const run = spawnSync(process.execPath, ['--require', path.join(__dirname, 'lookup.cjs'), __filename,
      'app-service'], { env, encoding: 'utf8' });

    assert.equal(run.status, 0, run.stderr);
    assert.ok(await count('appService') > 0);
  },

  async 'identity: across tenants (managed identity, assertion, other tenant)'() {
    const managed = new ManagedIdentityCredential({ clientId: clientId(5) });
    const assertion = async () => (await managed.getToken('api://AzureADTokenExchange/.default')).token;

    await serves('gamma', new ClientAssertionCredential(fabrikam, clientId(6), assertion, authority));
  },

  async 'a vault of another tenant takes no token of ours'() {
    await refused(client('gamma', { getToken: (scope) => all.getToken(scope) }, quick).getKey('tde'), 401);
  },

  async 'throttling: the client waits and tries again'() {
    const before = await count('getKey');

    await admin('POST', 'fault', { route: 'getKey', fault: '429', retry_after: 1, times: 1 });
    const began = Date.now();
    assert.equal((await alpha.getKey('tde')).name, 'tde');
    assert.ok(Date.now() - began >= 950, 'Retry-After is kept');
    assert.ok(await count('getKey') >= before + 2);
  },

  async 'faults: each reaches the client as it should'() {
    const expected = { 403: 403, 404: 404, 409: 409, 500: 500, 503: 503, 'not-json': null,
      truncated: null, refuse: null, empty: null };

    for (const [fault, status] of Object.entries(expected)) {
      await admin('POST', 'fault', { route: 'getKey', fault, times: 1 });
      const error = await client('alpha', all, quick).getKey('tde').then((key) => key?.key?.n ? null : new Error(), (e) => e);
      assert.ok(error, `${fault} must be noticed`);
      if (status) assert.equal(error.statusCode, status);
      await admin('DELETE', 'fault');
    }
    assert.equal((await alpha.getKey('tde')).name, 'tde');
  },

  async 'fault: flipped bits, wrong kid'() {
    const key = await alpha.getKey('tde');

    await admin('POST', 'fault', { route: 'unwrapKey', fault: 'flip', times: 1 });
    const c = crypt(key.id, all);
    const wrapped = (await c.wrapKey('RSA-OAEP-256', dek)).result;
    assert.notDeepEqual(Buffer.from((await c.unwrapKey('RSA-OAEP-256', wrapped)).result), dek);
    await admin('POST', 'fault', { route: 'getKey', fault: 'wrong-kid', times: 1 });
    assert.notEqual((await alpha.getKey('tde')).id, key.id);
    await admin('DELETE', 'fault');
  },

  /* The control: these clients do verify, so that the rest proves something. */
  'without the CA nothing is accepted'() {
    const env = { ...process.env };

    delete env.NODE_EXTRA_CA_CERTS;
    const run = spawnSync(process.execPath, ['--require', path.join(__dirname, 'lookup.cjs'), '-e',
      `fetch('${vaultUrl('alpha')}/keys').then(() => console.log('accepted'), (e) => console.log(e.cause.code))`],
    { env, encoding: 'utf8' });

    assert.match(run.stdout, /UNABLE_TO|SELF_SIGNED/);
  },

  async 'the log holds no token and no secret'() {
    const log = JSON.stringify(await admin('GET', 'log'));

    assert.ok(log.includes('app-secret'));
    assert.ok(!log.includes(secretOf('app-secret')) && !log.includes('eyJ'));
  },
};

async function main() {
  let passed = 0;
  let failed = 0;

  makeInstance();
  for (const [name, test] of Object.entries(tests)) {
    try {
      await test();
      passed++;
      console.log(`ok: ${name}`);
    } catch (error) {
      failed++;
      console.log(`FAILED: ${name}: ${error.stack}`);
    }
  }
  console.log(`${passed} passed, ${failed} failed, 0 skipped`);
  process.exit(failed ? 1 : 0);
}

if (process.argv[2] === 'app-service') serves('alpha', new ManagedIdentityCredential({ clientId: clientId(5) }));
else main();
