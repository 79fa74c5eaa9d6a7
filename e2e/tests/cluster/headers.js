// An MCP server over Streamable HTTP that tells with which headers it was called.
// Of its credential it gives only the digest away.
const { createHash, randomUUID } = require('node:crypto');
const digest = (text) => createHash('sha256').update(text).digest('hex');
const answers = {
  initialize: ({ protocolVersion }) => ({
    protocolVersion,
    capabilities: { tools: {} },
    serverInfo: { name: 'headers', version: '1' },
  }),
  ping: () => ({}),
  'tools/list': () => ({ tools: [{ name: 'headers', inputSchema: { type: 'object' } }] }),
  'tools/call': (_, { authorization = '', ...others }) => ({
    content: [{ type: 'text', text: JSON.stringify({ digest: digest(authorization), others }) }],
  }),
};

require('node:http').createServer(async (request, response) => {
  if (request.method !== 'POST') return response.writeHead(405).end();
  let body = '';
  for await (const part of request) body += part;
  const { id, method, params } = JSON.parse(body);
  if (id === undefined) return response.writeHead(202).end();
  // A server that tells all it knows in headers, too.
  const { authorization = 'none' } = request.headers;
  const headers = { 'content-type': 'application/json', authorization, 'x-credential': authorization };
  if (method === 'initialize') headers['mcp-session-id'] = randomUUID();
  const answer = answers[method];
  const outcome = answer
    ? { result: answer(params, request.headers) }
    : { error: { code: -32601, message: `no method ${method}` } };
  response.writeHead(200, headers).end(JSON.stringify({ jsonrpc: '2.0', id, ...outcome }));
}).listen(8080, '127.0.0.1');
