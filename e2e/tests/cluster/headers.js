// An MCP server that tells with which headers it was called. Of its credential it
// gives only the digest away.
const { createHash, randomUUID } = require('node:crypto');
const digest = (text) => createHash('sha256').update(text).digest('hex');

serve('headers', {
  headers: (_, { request }) => {
    const { authorization = '', ...others } = request.headers;
    return JSON.stringify({ digest: digest(authorization), others });
  },
}, {
  // A server that tells all it knows in headers, too.
  headers: (method, request) => {
    const { authorization = 'none' } = request.headers;
    const told = { authorization, 'x-credential': authorization };
    return method === 'initialize' ? { ...told, 'mcp-session-id': randomUUID() } : told;
  },
});
