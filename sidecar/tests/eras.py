"""An MCP server of one era that does as it is told by the name of the tool.

    eras.py legacy|modern stdio|http [SLOW]

Its first process, the one that makes the file SLOW, reads nothing before it has
been asked in both eras.
Over HTTP it prints its port. It is strict: what a client of its era must send,
it wants.
"""
import itertools
import json
import os
import queue
import select
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ERA, TRANSPORT = sys.argv[1:3]
MODERN = ERA == "modern"
VERSION = "2026-07-28" if MODERN else "2025-11-25"
META = "io.modelcontextprotocol/"
CAPABILITIES = {
    "tools": {"listChanged": True}, "prompts": {"listChanged": True}, "logging": {}, "tasks": {},
    "resources": {"listChanged": True, "subscribe": True}, "completions": {},
}
lock = threading.RLock()
streams = []  # What it says by itself: (send, tag or None, wanted or None).
cancelled = {}  # By the id of a request in flight.
answers = queue.Queue()  # To requests of ours.


class Error(Exception):
    pass


def announce():
    """Says that everything has changed."""
    changed = [("notifications/%s/list_changed" % what, {}) for what in ("tools", "prompts", "resources")]
    changed += [("notifications/resources/updated", {"uri": uri}) for uri in ("x:y", "x:z")]
    with lock:
        for send, tag, wanted in list(streams):
            for method, params in changed:
                if wanted is not None and (params.get("uri") or method.split("/")[1] + "ListChanged") not in wanted:
                    continue
                if tag is not None:
                    params = {**params, "_meta": {META + "subscriptionId": tag}}
                try:
                    send({"jsonrpc": "2.0", "method": method, "params": params})
                except OSError:
                    streams.remove((send, tag, wanted))
                    break


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Error({"code": -32603, "message": "never"})
        time.sleep(0.02)


def call(id, params, send, gone):
    tool, arguments = params["name"], params.get("arguments", {})
    text = lambda value: {"content": [{"type": "text", "text": json.dumps(value)}]}
    if tool == "seen":
        return text(params)
    if tool == "count":
        for n in (1, 2, 3):
            progress = {"progressToken": params["_meta"]["progressToken"], "progress": n}
            send({"jsonrpc": "2.0", "method": "notifications/progress", "params": progress})
        return text("counted")
    if tool == "change":
        announce()
        return text("changed")
    if tool == "hang":
        cancelled[id] = threading.Event()
        open(arguments["begun"], "w").close()
        until(lambda: cancelled[id].is_set() or gone())
        open(arguments["cancelled"], "w").close()
        return text("cancelled")
    if tool == "ask" and MODERN:
        return {"resultType": "input_required", "inputRequests": {"a": {"method": "elicitation/create", "params": {}}}, "requestState": "s"}
    if tool == "ask":
        send({"jsonrpc": "2.0", "id": "question", "method": "elicitation/create", "params": {"message": "?"}})
        return text(answers.get(timeout=30))
    if tool == "structured":
        return {**text("list"), "structuredContent": [1]}
    raise Error({"code": -32602, "message": "Unknown tool: " + tool})


def result(id, method, params, send, gone):
    if method == "tools/list":
        return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("seen", "count", "hidden")]}
    if method == "tools/call":
        return call(id, params, send, gone)
    if method == "prompts/list":
        return {"prompts": [{"name": "greet"}]}
    if method == "prompts/get":
        return {"messages": [{"role": "user", "content": {"type": "text", "text": params["name"]}}]}
    if method == "resources/list":
        return {"resources": [{"uri": "x:y", "name": "y"}]}
    if method == "resources/templates/list":
        return {"resourceTemplates": [{"uriTemplate": "x:{z}", "name": "z"}]}
    if method == "resources/read" and params["uri"] == "x:y":
        return {"contents": [{"uri": "x:y", "text": "content"}]}
    if method == "resources/read":
        raise Error({"code": -32602 if MODERN else -32002, "message": "not found", "data": {"uri": params["uri"]}})
    if method == "completion/complete":
        return {"completion": {"values": [params["argument"]["value"] + "!"]}}
    if MODERN and method == "server/discover":
        info = {META + "serverInfo": {"name": ERA, "version": "1"}}
        return {"supportedVersions": [VERSION], "capabilities": CAPABILITIES, "instructions": "be kind", "_meta": info}
    if not MODERN and method == "initialize":
        return {"protocolVersion": VERSION, "capabilities": CAPABILITIES, "serverInfo": {"name": ERA, "version": "1"}, "instructions": "be kind"}
    if not MODERN and method in ("ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"):
        return {}
    raise Error({"code": -32601, "message": "no such method: " + method})


def listen(id, params, send):
    """A subscription: stays until its stream breaks or it is cancelled."""
    asked = params["notifications"]
    wanted = {name for name, value in asked.items() if value is True} | set(asked.get("resourceSubscriptions", []))
    meta = {"_meta": {META + "subscriptionId": id}}
    send({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": {"notifications": asked, **meta}})
    stream = (send, id, wanted)
    with lock:
        streams.append(stream)
    return stream


def answer(message, send, gone):
    id, params = message["id"], message.get("params", {})
    try:
        if MODERN and params.get("_meta", {}).get(META + "protocolVersion") != VERSION:
            raise Error({"code": -32602, "message": "no version in _meta"})
        found = result(id, message["method"], params, send, gone)
        if MODERN:
            found = {"resultType": "complete", **found}
        return {"jsonrpc": "2.0", "id": id, "result": found}
    except Error as error:
        return {"jsonrpc": "2.0", "id": id, "error": error.args[0]}


def heard(message):
    """A notification or an answer."""
    if message.get("method") == "notifications/cancelled":
        event = cancelled.get(message["params"]["requestId"])
        if event:
            event.set()
    elif "method" not in message:
        answers.put(message)


def stdio():
    def send(message):
        with lock:
            print(json.dumps(message), flush=True)

    if not MODERN:
        streams.append((send, None, None))
    asked = []
    if sys.argv[3:] and not os.path.exists(sys.argv[3]):
        open(sys.argv[3], "w").close()
        asked = [sys.stdin.readline() for _ in ("server/discover", "initialize")]
    for line in itertools.chain(asked, sys.stdin):
        message = json.loads(line)
        if "method" not in message or "id" not in message:
            heard(message)
        elif MODERN and message["method"] == "subscriptions/listen":
            listen(message["id"], message["params"], send)
        else:
            run = lambda message=message: send(answer(message, send, lambda: False))
            threading.Thread(target=run, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def gone(self):
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def head(self, status, *headers):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def whole(self, status, message, *headers):
        body = json.dumps(message).encode() if message else b""
        self.head(status, ("content-type", "application/json"), ("content-length", str(len(body))), *headers)
        self.wfile.write(body)

    def send(self, message):
        with lock:
            self.wfile.write(b"data: " + json.dumps(message).encode() + b"\n\n")

    def stream(self):
        self.close_connection = True
        self.head(200, ("content-type", "text/event-stream"), ("connection", "close"))

    def wrong(self, message, method, params):
        """What a client of this era must not send, or leave out."""
        header = self.headers.get
        if not MODERN:
            return method != "initialize" and header("mcp-session-id") != "the-servers-own"
        name = params.get("uri" if method == "resources/read" else "name")
        named = method in ("tools/call", "prompts/get", "resources/read")
        return (
            header("mcp-session-id") is not None
            or header("mcp-protocol-version") != VERSION
            or "id" in message and header("mcp-method") != method
            or named and header("mcp-name") != name
        )

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        method, params = message.get("method"), message.get("params", {})
        if self.wrong(message, method, params):
            error = {"code": -32020, "message": "headers are wrong"}
            return self.whole(400, {"jsonrpc": "2.0", "id": message.get("id"), "error": error})
        if method is None or "id" not in message:
            heard(message)
            return self.whole(202, None)
        if method in ("initialize", "server/discover"):
            reply = answer(message, self.send, self.gone)
            own = [("mcp-session-id", "the-servers-own")] if method == "initialize" and "result" in reply else []
            return self.whole(200 if "result" in reply else 404, reply, *own)
        self.stream()
        if MODERN and method == "subscriptions/listen":
            stream = listen(message["id"], params, self.send)
            until(self.gone, 600)
            with lock:
                if stream in streams:
                    streams.remove(stream)
            return
        self.send(answer(message, self.send, self.gone))

    def do_GET(self):
        if MODERN or self.headers.get("mcp-session-id") != "the-servers-own":
            return self.whole(405, None, ("allow", "POST"))
        self.stream()
        self.wfile.write(b": open\n\n")
        stream = (self.send, None, None)
        with lock:
            streams.append(stream)
        until(self.gone, 600)
        with lock:
            if stream in streams:
                streams.remove(stream)

    def do_DELETE(self):
        self.whole(405 if MODERN else 200, None)


if TRANSPORT == "stdio":
    stdio()
else:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
