// Reads the turn of an agent: from the bytes of a response to texts and tool calls.

/** Yield the server-sent events of `response.body`, each as {id, name, data}. */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read(); // Raises a TypeError if the connection breaks.
    if (done) return; // An event without its blank line is incomplete.
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    yield* frames.map(parseFrame);
  }
}

function parseFrame(frame) {
  const fields = { event: "message", data: [] };
  for (const line of frame.split("\n")) {
    const [name] = line.split(":", 1); // Empty for comments, which keep the connection open.
    const value = line.slice(name.length + 1).replace(/^ /, "");
    if (name === "event") fields.event = value;
    if (name === "id") fields.id = value;
    if (name === "data") fields.data.push(value);
  }
  return { id: fields.id, name: fields.event, data: JSON.parse(fields.data.join("\n")) };
}

const ERRORS = { ClientClosed: "The application was stopped. Reload the page in a minute." };

/** The reply of the agent. Pass each event to `feed`, and show `parts`, `status` and `error`. */
export class Turn {
  status = "";
  error = ""; // A sentence for the user.
  details = ""; // The cause of the error, for developers.
  isStopped = false;
  #messages = new Map(); // For each event_id, the kind and the document of the message.

  feed({ name, data }) {
    if (name === "chunk") {
      const message = this.#messages.get(data.event_id) ?? { kind: data.metadata?.kind };
      this.#messages.set(data.event_id, message);
      for (const patch of data.patches) message.root = applyPatch(message.root, patch);
    } else if (name === "status") {
      this.status = data.data.status;
      if (this.status === "error") {
        this.error = "The agent could not finish its reply. Try again, or ask something else.";
        this.details = asText(data.data.data ?? "no details");
      }
    } else if (name === "error" && data.type === "TurnStopped") {
      this.isStopped = true;
    } else if (name === "error") {
      this.error = ERRORS[data.type] ?? "The connection to the agent was lost. Reload the page to see the stored messages.";
      this.details = data.message;
    }
  }

  /** The parts of the reply so far, each as {kind, text}. */
  get parts() {
    const parts = [...this.#messages.values()].flatMap(({ kind, root }) => partsOf(kind, root));
    return this.isStopped ? [...parts, { kind: "stopped", text: "Stopped." }] : parts;
  }
}

function partsOf(kind, root) {
  if (root?.tool_calls) return root.tool_calls.map(callPart);
  if (root?.tool_call_results) return root.tool_call_results.map(({ data }) => resultPart(data?.result));
  return [textPart(kind === "reasoning" ? "reasoning" : "text", root)];
}

/** The parts of a stored event, as `Turn.parts` has them for a stream. */
export function storedParts({ type, source, data }) {
  if (type === "tool") return data.tool_calls.map(({ result }) => resultPart(result?.data));
  return (data.parts ?? []).map((part) => {
    if (part.type === "tool_call") return callPart(part);
    if (part.type === "reasoning") return textPart("reasoning", part.reasoning);
    return textPart(source === "user" ? "user" : "text", part.content);
  });
}

const textPart = (kind, value) => ({ kind, text: asText(value) });
const callPart = ({ tool_name = "", args }) => ({ kind: "tool_call", text: `${tool_name}(${asJson(args)})` });
const resultPart = (value) => ({ kind: "tool_result", text: JSON.stringify(value ?? null) });

/** Return a string, or an array of strings, as text, and other values as JSON. */
function asText(value) {
  const pieces = [value].flat();
  return pieces.every((piece) => typeof piece === "string") ? pieces.join("") : JSON.stringify(value);
}

/** Return JSON, or JSON text, in one form. A stream has the arguments of a tool as text. */
function asJson(value) {
  const text = asText(value);
  try {
    return JSON.stringify(JSON.parse(text));
  } catch {
    return text; // Not complete yet.
  }
}

/** Apply a JSON Patch operation (RFC 6902) to `root`, and return the new root. */
function applyPatch(root, { op, path, value }) {
  if (op !== "add" && op !== "replace") throw new Error(`unsupported operation: ${op}`);
  if (path === "") return value;
  const keys = path.slice(1).split("/").map((key) => key.replaceAll("~1", "/").replaceAll("~0", "~"));
  const last = keys.pop();
  // Parents that do not exist yet are arrays or objects, depending on the next key.
  const parents = { root };
  let parent = parents;
  for (const [index, key] of ["root", ...keys].entries()) {
    const isArray = /^(-|\d+)$/.test([...keys, last][index]);
    const child = Object.hasOwn(parent, key) ? parent[key] : undefined;
    if (child === undefined || (isArray && !Array.isArray(child))) parent[key] = isArray ? [] : {};
    parent = parent[key];
  }
  if (last === "-") parent.push(value);
  else if (op === "add" && Array.isArray(parent)) parent.splice(last, 0, value);
  else parent[last] = value;
  return parents.root;
}
