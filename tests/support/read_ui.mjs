// Reads relays as a chat component does. Usage: node read_ui.mjs READER < RELAYS
// RELAYS is a JSON list with the text of each relay. Prints a JSON list of what was read.
import { createRequire } from "node:module";
import { text } from "node:stream/consumers";

const load = createRequire(`${process.cwd()}/`); // The packages are installed there.
const [reader] = process.argv.slice(2);
const readers = { "ai-sdk": readAiSdk, "ag-ui": readAgUi };

async function readAiSdk(relay) {
  const { parseJsonEventStream, readUIMessageStream, uiMessageChunkSchema } = load("ai");
  let last, error = null, message = { parts: [] };
  const valid = new TransformStream({
    transform(parsed, controller) {
      if (!parsed.success) throw parsed.error;
      last = parsed.value.type;
      controller.enqueue(parsed.value);
    },
  });
  const parsed = parseJsonEventStream({ stream: new Response(relay).body, schema: uiMessageChunkSchema });
  const onError = (problem) => (error = problem.message);
  for await (const each of readUIMessageStream({ stream: parsed.pipeThrough(valid), onError })) message = each;
  return { items: message.parts, error, last };
}

async function readAgUi(relay) {
  const { HttpAgent } = load("@ag-ui/client");
  const headers = { "content-type": "text/event-stream" };
  globalThis.fetch = async () => new Response(relay, { headers });
  const agent = new HttpAgent({ url: "http://127.0.0.1/", threadId: "thread" });
  let last, error = null;
  await agent.runAgent({ runId: "run" }, {
    onEvent({ event }) { last = event.type; },
    onRunErrorEvent({ event }) { error = event.message; },
    onRunFailed({ error: problem }) { error ??= problem.message; },
  }).catch((problem) => { error ??= problem.message; });
  return { items: agent.messages, error, last };
}

const results = [];
for (const relay of JSON.parse(await text(process.stdin))) results.push(await readers[reader](relay));
console.log(JSON.stringify(results));
