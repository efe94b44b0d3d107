// The reader of the page rebuilds the recorded turns of the real server from their bytes.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Turn, readEvents, storedParts } from "../../examples/web/static/turn.js";

const cases = JSON.parse(readFileSync(new URL("../data/accumulator_cases.json", import.meta.url)));

/** Return a body that yields the bytes of `text` in pieces of `size` bytes. */
function bodyOf(text, size = Infinity) {
  const bytes = new TextEncoder().encode(text);
  return new ReadableStream({
    start(controller) {
      for (let start = 0; start < bytes.length; start += size) {
        controller.enqueue(bytes.slice(start, start + size));
      }
      controller.close();
    },
  });
}

async function read(body) {
  const turn = new Turn();
  for await (const event of readEvents(body)) turn.feed(event);
  return turn;
}

function isRebuilt({ name, client_derivable, order_derivable, persisted }) {
  // The page leaves holes in an array, where the server adds empty objects.
  return name !== "auto_extend_list_far" && client_derivable && order_derivable && persisted.length;
}

// A message is stored later than its first chunk was sent.
function withoutTimes(parts) {
  return parts.map(({ time, ...part }) => {
    assert.equal(time > 0, "agent" in part);
    return part;
  });
}

for (const { name, wire, persisted } of cases.filter(isRebuilt)) {
  test(name, async () => {
    if (/"op": "(remove|move|copy|test)"/.test(wire)) {
      await assert.rejects(read(bodyOf(wire)), /unsupported operation/);
      return;
    }
    const stored = persisted.filter(({ source }) => source === "ai_agent");
    const turn = await read(bodyOf(wire, 7));
    if (stored.every(({ type }) => type === "status")) return;
    assert.deepEqual(withoutTimes(turn.parts), withoutTimes(stored.flatMap(storedParts)));
  });
}

test("most recorded turns are compared", () => {
  assert.ok(cases.filter(isRebuilt).length > 35);
});

const origin = { metadata: { agent_name: "Ada" }, timestamp: 1.5 };
const chunk = (...patches) => `event: chunk\ndata: ${JSON.stringify({ event_id: "m", patches, ...origin })}\n\n`;
const add = (path, value) => ({ op: "add", path, value });

test("heartbeats, unknown events and an incomplete last event are ignored", async () => {
  const heartbeat = ": heartbeat\n";
  const unknown = 'event: new\nid: 1\ndata: {"a":\ndata: 1}\n\n';
  const text = heartbeat + chunk(add("/-", "é\u2028")) + heartbeat + heartbeat + unknown + chunk(add("/-", "b"));
  const turn = await read(bodyOf(text + chunk(add("/-", "c")).slice(0, -1), 1));
  assert.deepEqual(turn.parts, [{ kind: "text", text: "é\u2028b", agent: "Ada", time: 1500 }]);
});

test("a broken connection is an error, after the events that were received", async () => {
  const turn = new Turn();
  const pieces = [chunk(add("/-", "a"))];
  const body = new ReadableStream({
    pull(controller) {
      const text = pieces.shift();
      if (text) controller.enqueue(new TextEncoder().encode(text));
      else controller.error(new TypeError("network error"));
    },
  });
  const reading = async () => {
    for await (const event of readEvents(body)) turn.feed(event);
  };
  await assert.rejects(reading, /network error/);
  assert.deepEqual(turn.parts, [{ kind: "text", text: "a", agent: "Ada", time: 1500 }]);
});

test("errors of the relay and of the agent are kept", async () => {
  const status = (data) => `event: status\ndata: ${JSON.stringify({ data })}\n\n`;
  for (const [text, error, details, end] of [
    ['event: error\ndata: {"type": "StreamInterrupted", "message": "cut"}\n\n', /connection .* lost/, "cut", "incomplete"],
    ['event: error\ndata: {"type": "ClientClosed", "message": "closed"}\n\n', /application was stopped/, "closed", "incomplete"],
    [status({ status: "error", data: { code: 1 } }), /could not finish/, '{"code":1}', "incomplete"],
    [status({ status: "error" }), /could not finish/, "no details", "incomplete"],
    [status({ status: "typing" }), /^$/, ""],
  ]) {
    const turn = await read(bodyOf(text));
    assert.match(turn.error, error);
    assert.equal(turn.details, details);
    assert.equal(turn.parts.at(-1)?.kind, end);
  }
});

test("paths cannot change the prototypes of objects", async () => {
  const paths = ["/__proto__/polluted", "/constructor/prototype/polluted", "/a/__proto__/polluted"];
  await read(bodyOf(chunk(...paths.map((path) => add(path, 1)))));
  assert.equal({}.polluted, undefined);
});

test("a turn that was stopped has no error", async () => {
  const stopped = 'id: 2\nevent: error\ndata: {"type": "TurnStopped", "message": "stopped"}\n\n';
  const turn = await read(bodyOf(chunk(add("/-", "a")) + stopped));
  assert.deepEqual(turn.parts.at(-1), { kind: "stopped", text: "Stopped." });
  assert.equal(turn.error, "");
});

test("events have their numbers", async () => {
  const ids = [];
  for await (const { id } of readEvents(bodyOf("id: 7\nevent: new\ndata: 1\n\n"))) ids.push(id);
  assert.deepEqual(ids, ["7"]);
});
