// An MCP server over stdio with state in its process: who it is, and how many
// calls it has had.
const process_id = require('node:crypto').randomUUID();
let calls = 0;

const send = (message) => process.stdout.write(JSON.stringify({ jsonrpc: '2.0', ...message }) + '\n');
const tool = (name) => ({ name, inputSchema: { type: 'object' } });
const answers = {
  initialize: ({ protocolVersion }) => ({
    protocolVersion,
    capabilities: { tools: {}, logging: {} },
    serverInfo: { name: 'counter', version: '1' },
  }),
  ping: () => ({}),
  'tools/list': () => ({ tools: [tool('count'), tool('announce')] }),
  'tools/call': ({ name }) => {
    // After the answer, so that it belongs to no request.
    const announce = () => send({ method: 'notifications/message', params: { level: 'info', data: process_id } });
    if (name === 'announce') setTimeout(announce, 50);
    return { content: [{ type: 'text', text: `${process_id} ${++calls}` }] };
  },
};

require('node:readline').createInterface({ input: process.stdin }).on('line', (line) => {
  const { id, method, params } = JSON.parse(line);
  if (id === undefined || method === undefined) return;
  const answer = answers[method];
  if (answer) send({ id, result: answer(params) });
  else send({ id, error: { code: -32601, message: `no method ${method}` } });
});
