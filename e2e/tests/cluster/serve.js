// What the tests' MCP servers over Streamable HTTP have in common. A tool is a
// function of its arguments and of the exchange, and gives a text. `first` may answer
// a request by itself, and `headers` are added to answers.
function serve(name, tools, { first = () => false, headers = () => ({}) } = {}) {
  const answers = {
    initialize: ({ protocolVersion }) => ({
      protocolVersion,
      capabilities: { tools: {} },
      serverInfo: { name, version: '1' },
    }),
    ping: () => ({}),
    'tools/list': () => ({
      tools: Object.keys(tools).map((tool) => ({ name: tool, inputSchema: { type: 'object' } })),
    }),
    'tools/call': async (params, exchange) => ({
      content: [{ type: 'text', text: await tools[params.name](params.arguments, { params, ...exchange }) }],
    }),
  };
  const answer = async (request, response) => {
    if (first(request, response)) return undefined;
    if (request.method !== 'POST') return response.writeHead(405).end();
    let body = '';
    for await (const part of request) body += part;
    const { id, method, params } = JSON.parse(body);
    if (id === undefined) return response.writeHead(202).end();
    const outcome = answers[method]
      ? { result: await answers[method](params, { request, response }) }
      : { error: { code: -32601, message: `no method ${method}` } };
    return response
      .writeHead(200, { 'content-type': 'application/json', ...headers(method, request) })
      .end(JSON.stringify({ jsonrpc: '2.0', id, ...outcome }));
  };
  // Who breaks a request off must not end the process.
  const serve = (request, response) => answer(request, response).catch(() => response.destroy());
  return require('node:http').createServer(serve).listen(8080, '127.0.0.1');
}

