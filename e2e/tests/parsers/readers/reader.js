// Reads messages as servers in JavaScript do, and prints what it read.
"use strict";

const fs = require("node:fs");

function text(value) {
  return '"' + Buffer.from(value, "utf16le").swap16().toString("hex");
}

function canonical(value) {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "string") return text(value);
  if (typeof value === "number") {
    const bits = Buffer.alloc(8);
    bits.writeDoubleBE(value);
    return "#" + bits.toString("hex");
  }
  if (Array.isArray(value)) return "[" + value.map(canonical).join(",") + "]";
  const members = Object.entries(value).map(([name, member]) => [text(name), canonical(member)]);
  members.sort(([a], [b]) => (a < b ? -1 : 1));
  return "{" + members.map((member) => member.join(":")).join(",") + "}";
}

function member(of, name) {
  const isObject = typeof of === "object" && of !== null && !Array.isArray(of);
  return isObject && Object.hasOwn(of, name) ? canonical(of[name]) : "~";
}

function read(body) {
  // As `Request.json()` does: a byte order mark is dropped, what is not UTF-8 replaced.
  const whole = JSON.parse(new TextDecoder().decode(body));
  const params = Object.hasOwn(Object(whole), "params") ? whole.params : undefined;
  return [
    ...["id", "method", "result", "error"].map((name) => member(whole, name)),
    ...["name", "uri", "arguments", "_meta"].map((name) => member(params, name)),
    canonical(whole),
  ].join("\t");
}

function* lines() {
  const input = fs.readFileSync(0);
  for (let at = 0; at < input.length; ) {
    const start = at + 4;
    at = start + input.readUInt32BE(at);
    try {
      yield read(input.subarray(start, at));
    } catch {
      yield "refused";
    }
  }
}

function* folds() {
  const hex = (value) => Buffer.from(value).toString("hex");
  for (let code = 0; code <= 0x10ffff; code++) {
    if (code >= 0xd800 && code < 0xe000) continue;
    const char = String.fromCodePoint(code);
    for (const other of new Set([char.toLowerCase(), char.toUpperCase()])) {
      if (other !== char) yield `${hex(char)} ${hex(other)}`;
    }
  }
}

const answers = [...(process.argv[2] === "folds" ? folds() : lines())];
fs.writeFileSync(1, answers.map((line) => line + "\n").join(""));
