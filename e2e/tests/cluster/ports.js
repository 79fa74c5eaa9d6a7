// An MCP server over Streamable HTTP on loopback whose tools open and close other
// ports of its pod, and say how it is when a probe asks.
const { randomUUID } = require('node:crypto');
const net = require('node:net');
const open = new Map();
let health = 200;
const tools = {
  listen: ({ port }) => new Promise((resolve, reject) => {
    const server = net.createServer((socket) => socket.destroy());
    server.on('error', reject).listen(port, '0.0.0.0', () => {
      open.set(port, server);
      resolve(`listens on ${port}`);
    });
  }),
  close: ({ port }) => new Promise((resolve) => open.get(port).close(() => resolve(`closed ${port}`))),
  health: ({ port }) => {
    health = port;
    return `answers ${port}`;
  },
};
const answers = {
  initialize: ({ protocolVersion }) => ({
    protocolVersion,
    capabilities: { tools: {} },
    serverInfo: { name: 'ports', version: '1' },
  }),
  ping: () => ({}),
  'tools/list': () => ({ tools: Object.keys(tools).map((name) => ({ name, inputSchema: { type: 'object' } })) }),
  'tools/call': async ({ name, arguments: args }) => ({ content: [{ type: 'text', text: await tools[name](args) }] }),
};

require('node:http').createServer(async (request, response) => {
  if (request.url === '/healthz') return response.writeHead(health).end();
  if (request.method !== 'POST') return response.writeHead(405).end();
  let body = '';
  for await (const part of request) body += part;
  const { id, method, params } = JSON.parse(body);
  if (id === undefined) return response.writeHead(202).end();
  const headers = { 'content-type': 'application/json' };
  if (method === 'initialize') headers['mcp-session-id'] = randomUUID();
  const answer = answers[method];
  const outcome = answer
    ? { result: await answer(params) }
    : { error: { code: -32601, message: `no method ${method}` } };
  response.writeHead(200, headers).end(JSON.stringify({ jsonrpc: '2.0', id, ...outcome }));
}).listen(8080, '127.0.0.1');
