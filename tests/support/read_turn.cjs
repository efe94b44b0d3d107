// Reads a turn as a web page does. Usage: node read_turn.cjs READER URL BODY
// It sends BODY to URL, and prints the name and the data of each event, as JSON.
const { createRequire } = require("node:module");
const load = createRequire(`${process.cwd()}/`); // The packages are installed there.

const [reader, url, body] = process.argv.slice(2);
const request = { method: "POST", headers: { "content-type": "application/json" }, body };
const events = [];
const onEvent = ({ event, data }) => events.push([event, JSON.parse(data)]);

async function fetchEventSource() {
  // The objects of a browser that the reader uses.
  globalThis.window = globalThis;
  globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
  let errors = 0;
  await load("@microsoft/fetch-event-source").fetchEventSource(url, {
    ...request,
    onmessage: onEvent,
    onerror(error) {
      if (++errors === 3) throw error;
      return 1; // It sends the request again after this number of milliseconds.
    },
  });
}

async function eventSourceParser() {
  const onError = (error) => {
    throw error;
  };
  const parser = load("eventsource-parser").createParser({ onEvent, onError });
  const response = await fetch(url, request);
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) parser.feed(text);
}

const read = { "fetch-event-source": fetchEventSource, "eventsource-parser": eventSourceParser };
read[reader]().then(() => console.log(JSON.stringify(events)));
