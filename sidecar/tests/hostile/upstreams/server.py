"""An MCP server on Python's http.server: it writes each request that it sees
as one line of JSON."""
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.Lock()


def say(line):
    with lock:
        print(json.dumps(line), flush=True)


def answer_to(method, body):
    if method != "POST":
        return 405, b""
    try:
        message = json.loads(body)
    except ValueError:
        return 400, b""
    if "id" not in message:
        return 202, b""
    result = {"content": [{"type": "text", "text": message.get("params", {}).get("name", "")}]}
    if message.get("method") == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "python", "version": "1"}}
    if message.get("method") == "tools/list":
        result = {"tools": []}
    return 200, json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self):
        length = self.headers.get("content-length") or "0"
        if not length.isdecimal() or int(length) > 1 << 30:
            return self.send_error(400)
        body = self.rfile.read(int(length))
        say({"method": self.command, "target": self.path, "agent": self.headers.get("user-agent", ""), "body": body.decode("utf8", "replace")})
        status, answer = answer_to(self.command, body)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_DELETE = do_PUT = do_HEAD = do_OPTIONS = do_PATCH = answer

    def log_message(self, *_):
        pass

    def send_error(self, *arguments, **named):
        # What it cannot read is something that it saw, too.
        say({"method": "?", "target": self.requestline, "agent": "", "body": ""})
        self.close_connection = True
        super().send_error(*arguments, **named)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, *_):
        pass  # Whoever does not wait for an answer gets none.


server = Server(("127.0.0.1", 0), Handler)
say({"listening": server.server_port})
server.serve_forever()
