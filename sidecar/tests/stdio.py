"""A stdio MCP server that does as it is told by the name of the tool."""
import json
import os
import sys
import time

print("server starts", file=sys.stderr)
for line in sys.stdin:
    message = json.loads(line)
    method, id = message.get("method"), message.get("id")
    if id is None or "result" in message:
        continue
    if method == "initialize" and message["params"].get("fail"):
        print(json.dumps({"jsonrpc": "2.0", "id": id, "error": {"code": 1, "message": "no"}}), flush=True)
        continue
    if method == "initialize":
        # Every revision that there is with a handshake.
        result = {"protocolVersion": message["params"].get("protocolVersion", "2025-11-25"), "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": [{"name": "pid", "inputSchema": {"type": "object"}}]}
    else:
        tool = message["params"]["name"]
        if tool == "crash":
            print("x" * 5000 + " the disk is full", file=sys.stderr)
            sys.exit(3)
        if tool == "noise":
            print("this line is no message", flush=True)
        if tool == "progress":
            progress = {"progressToken": message["params"]["_meta"]["progressToken"], "message": message["params"]["arguments"]["of"]}
            print(json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": progress}), flush=True)
        if tool == "notify":
            print(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "hello"}}), flush=True)
        if tool in ("hang", "slow"):
            files = message["params"]["arguments"]
            open(files["begun"], "w").close()
            if tool == "hang":
                continue
            while not os.path.exists(files["release"]):
                time.sleep(0.02)
        told = {"echo": message["params"].get("arguments"), "params": message["params"]}
        text = json.dumps(told[tool]) if tool in told else str(os.getpid())
        result = {"content": [{"type": "text", "text": text}]}
    print(json.dumps({"jsonrpc": "2.0", "id": id, "result": result}), flush=True)
