// An MCP server on Node's http, its parser as lenient as it gets: it writes
// each request that it sees as one line of JSON.
import http from "node:http";

const server = http.createServer({ insecureHTTPParser: true, keepAliveTimeout: 60_000 }, (request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const body = Buffer.concat(chunks).toString("utf8");
    const agent = request.headers["user-agent"] ?? "";
    console.log(JSON.stringify({ method: request.method, target: request.url, agent, body }));
    const [status, answer] = answerTo(request.method, body);
    response.writeHead(status, answer ? { "content-type": "application/json" } : {});
    response.end(answer);
  });
});

function answerTo(method, body) {
  if (method !== "POST") return [405, ""];
  let message;
  try {
    message = JSON.parse(body);
  } catch {
    return [400, ""];
  }
  if (message.id === undefined) return [202, ""];
  let result = { content: [{ type: "text", text: message.params?.name ?? "" }] };
  if (message.method === "initialize")
    result = { protocolVersion: "2025-11-25", capabilities: { tools: {} }, serverInfo: { name: "node", version: "1" } };
  if (message.method === "tools/list") result = { tools: [] };
  return [200, JSON.stringify({ jsonrpc: "2.0", id: message.id, result })];
}

server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ listening: server.address().port })));
