// An MCP server over Streamable HTTP, without sessions, on loopback. `wait` takes a
// moment, so that there are calls under way at any time; `finish` ends the process.
const answers = {
  initialize: ({ protocolVersion }) => ({
    protocolVersion,
    capabilities: { tools: {} },
    serverInfo: { name: 'app', version: '1' },
  }),
  ping: () => ({}),
  'tools/list': () => ({ tools: ['wait', 'finish'].map((name) => ({ name, inputSchema: { type: 'object' } })) }),
  'tools/call': ({ name }) => ({ content: [{ type: 'text', text: name }] }),
};

const server = require('node:http').createServer(async (request, response) => {
  if (request.method !== 'POST') return response.writeHead(405).end();
  let body = '';
  for await (const part of request) body += part;
  const { id, method, params } = JSON.parse(body);
  if (id === undefined) return response.writeHead(202).end();
  const answer = answers[method];
  const outcome = answer
    ? { result: answer(params) }
    : { error: { code: -32601, message: `no method ${method}` } };
  const send = () => response
    .writeHead(200, { 'content-type': 'application/json' })
    .end(JSON.stringify({ jsonrpc: '2.0', id, ...outcome }));
  const tool = method === 'tools/call' ? params.name : '';
  // The sidecar, which ends with the process, has to pass the answer on.
  if (tool === 'finish') response.on('finish', () => setTimeout(() => process.exit(0), 1000));
  return tool === 'wait' ? setTimeout(send, 200) : send();
}).listen(8080, '127.0.0.1');
// A process that gets no processor for 5 s, the default, would close connections
// before it looks at what has come on them.
server.keepAliveTimeout = 60000;

process.on('SIGTERM', () => server.close(() => process.exit(0)));
