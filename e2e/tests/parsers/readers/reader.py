"""Reads messages as servers in Python do, and prints what it read."""

import json
import struct
import sys


def text(value):
    return '"' + value.encode("utf-16-be", "surrogatepass").hex()


def number(value):
    if isinstance(value, int):
        try:
            exact = int(float(value)) == value
        except OverflowError:
            exact = False
        if not exact:
            return f"#{value:x} beyond a double"
    return "#" + struct.pack(">d", value).hex()


def canonical(value):
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return number(value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    members = {text(name): canonical(member) for name, member in value.items()}
    return "{" + ",".join(f"{name}:{members[name]}" for name in sorted(members)) + "}"


def member(of, name):
    if isinstance(of, dict) and name in of:
        return canonical(of[name])
    return "~"


def read(body):
    whole = json.loads(body)
    params = whole.get("params") if isinstance(whole, dict) else None
    fields = [member(whole, name) for name in ("id", "method", "result", "error")]
    fields += [member(params, name) for name in ("name", "uri", "arguments", "_meta")]
    return "\t".join([*fields, canonical(whole)])


def folds(out):
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        for other in {char.lower(), char.upper(), char.casefold()} - {char}:
            print(char.encode().hex(), other.encode().hex(), file=out)


def main():
    if sys.argv[1] == "folds":
        return folds(sys.stdout)
    while header := sys.stdin.buffer.read(4):
        body = sys.stdin.buffer.read(int.from_bytes(header, "big"))
        try:
            line = read(body)
        except (ValueError, RecursionError):
            line = "refused"
        print(line)


main()
