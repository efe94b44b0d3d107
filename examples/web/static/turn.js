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

/** The texts of parts that end a turn without a complete reply. */
export const ENDS = { stopped: "Stopped.", incomplete: "This reply is incomplete.", unanswered: "No reply is stored." };
export const endPart = (kind) => ({ kind, text: ENDS[kind] });

/** The reply of the agent. Pass each event to `feed`, and show `parts`, `status` and `error`. */
export class Turn {
  id; // The correlation id, which the stored events of the turn have, too.
  status = "";
  error = ""; // A sentence for the user.
  details = ""; // The cause of the error, for developers.
  end; // The kind of the part that ends the turn without a complete reply.
  #messages = new Map(); // For each event_id, the kind and the document of the message.

  feed({ name, data }) {
    this.id ??= data.correlation_id;
    if (name === "chunk") {
      const message = this.#messages.get(data.event_id) ?? firstOf(data);
      this.#messages.set(data.event_id, message);
      for (const patch of data.patches) message.root = applyPatch(message.root, patch);
    } else if (name === "status") {
      this.status = data.data.status;
      if (this.status === "error") {
        this.error = "The agent could not finish its reply. Try again, or ask something else.";
        this.details = asText(data.data.data ?? "no details");
        this.end = "incomplete";
      }
    } else if (name === "error" && data.type === "TurnStopped") {
      this.end = "stopped";
    } else if (name === "error") {
      this.error = ERRORS[data.type] ?? "The connection to the agent was lost. Reload the messages.";
      this.details = data.message;
      this.end = "incomplete";
    }
  }

  /** The parts of the reply so far, each as {kind, text}. Parts of messages have `agent` and `time`, too. */
  get parts() {
    const parts = [...this.#messages.values()].flatMap(({ kind, root, origin }) => withOrigin(partsOf(kind, root), origin));
    return this.end ? [...parts, endPart(this.end)] : parts;
  }
}

const firstOf = ({ metadata, timestamp }) => ({ kind: metadata?.kind, origin: { agent: metadata?.agent_name, time: timestamp * 1000 } });
const withOrigin = (parts, origin) => parts.map((part) => (part.kind.startsWith("tool") ? part : { ...part, ...origin }));

function partsOf(kind, root) {
  if (root?.tool_calls) return root.tool_calls.map(callPart);
  if (root?.tool_call_results) return root.tool_call_results.map(({ data }) => resultPart(data?.result));
  return [textPart(kind === "reasoning" ? "reasoning" : "text", root)];
}

/** The parts of a stored event, as `Turn.parts` has them for a stream. */
export function storedParts({ type, source, data, created_at }) {
  if (type === "status") return data.status === "error" ? [endPart("incomplete")] : [];
  if (type === "tool") return data.tool_calls.map(({ result }) => resultPart(result?.data));
  const parts = (data.parts ?? []).map((part) => {
    if (part.type === "tool_call") return callPart(part);
    if (part.type === "reasoning") return textPart("reasoning", part.reasoning);
    return textPart(source === "user" ? "user" : "text", part.content);
  });
  return withOrigin(parts, { agent: data.participant?.name, time: Date.parse(created_at) });
}

const textPart = (kind, value) => ({ kind, text: asText(value) });
const callPart = ({ tool_name = "", args }) => ({ kind: "tool_call", text: `${tool_name}(${asJson(args)})` });
const resultPart = (value) => ({ kind: "tool_result", text: JSON.stringify(value ?? null, null, 2) });

/** Return a string, or an array of strings, as text, and other values as JSON. */
function asText(value) {
  const pieces = [value].flat();
  return pieces.every((piece) => typeof piece === "string") ? pieces.join("") : JSON.stringify(value);
}

/** Return JSON, or JSON text, in one form. A stream has the arguments of a tool as text. */
function asJson(value) {
  const text = asText(value);
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
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
