// An issuer of tokens over https, with its metadata where Keycloak has them. Its
// keys are read anew for each request.
const fs = require('node:fs');
const issuer = process.env.ISSUER;
const realm = new URL(issuer).pathname;
const pages = {
  [`${realm}/.well-known/openid-configuration`]: () => JSON.stringify({ issuer, jwks_uri: `${issuer}/certs` }),
  [`${realm}/certs`]: () => fs.readFileSync('/files/jwks.json'),
};
const pair = { cert: fs.readFileSync('/files/tls.crt'), key: fs.readFileSync('/files/tls.key') };

require('node:https').createServer(pair, ({ url }, response) => {
  const page = pages[url];
  response.writeHead(page ? 200 : 404, { 'content-type': 'application/json' });
  response.end(page ? page() : '{}');
}).listen(8443);
