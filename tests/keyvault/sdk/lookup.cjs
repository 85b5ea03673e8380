/*
** lookup.cjs: host names for the tests, inside this process alone.
**
** Every name below .localtest is 127.0.0.1; any other name is refused, so that no
** request can leave the machine unseen. Preloaded with --require.
*/
'use strict';
const dns = require('node:dns');

dns.lookup = (host, options, callback) => {
  const done = typeof options === 'function' ? options : callback;
  const all = typeof options === 'object' && options !== null && options.all;

  process.nextTick(() => {
    if (!/\.localtest$/.test(host) && host !== 'localhost') {
      done(Object.assign(new Error(`no such host in this test: ${host}`), { code: 'ENOTFOUND' }));
    } else if (all) {
      done(null, [{ address: '127.0.0.1', family: 4 }]);
    } else {
      done(null, '127.0.0.1', 4);
    }
  });
};
