// An MCP server on loopback whose tools open and close other ports of its pod, and
// say how it is when a probe asks.
const net = require('node:net');
const open = new Map();
let health = 200;

serve('ports', {
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
}, {
  first: (request, response) => request.url === '/healthz' && response.writeHead(health).end(),
  headers: (method) => (method === 'initialize' ? { 'mcp-session-id': require('node:crypto').randomUUID() } : {}),
});
