// An MCP server without sessions, on loopback. `wait` takes a moment, so that there
// are calls under way at any time; `finish` ends the process.
const server = serve('app', {
  wait: () => new Promise((done) => setTimeout(done, 200, 'wait')),
  finish: (_, { response }) => {
    // The sidecar, which ends with the process, has to pass the answer on.
    response.on('finish', () => setTimeout(() => process.exit(0), 1000));
    return 'finish';
  },
});
// A process that gets no processor for 5 s, the default, would close connections
// before it looks at what has come on them.
server.keepAliveTimeout = 60000;

process.on('SIGTERM', () => server.close(() => process.exit(0)));
