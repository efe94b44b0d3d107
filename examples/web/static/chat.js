// The page: sends messages, shows replies, and stops them.

import { Turn, readEvents, storedParts } from "./turn.js";

const [chat, finished, status, error, form, text, sendButton, stopButton] = [
  "chat", "finished", "status", "error", "form", "text", "send", "stop",
].map((id) => document.getElementById(id));

const SPEAKERS = {
  user: "You", text: "Agent", reasoning: "Agent, thinking", tool_call: "Tool call", tool_result: "Tool result", stopped: "Chat",
};

// The id of the session is in the URL, so that the chat continues after a reload. The application
// checks that the session belongs to the user.
let sessionId = new URLSearchParams(location.search).get("session");

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const message = text.value;
  if (!message.trim()) return;
  text.value = "";
  run(() => send(message));
});

// Enter sends the message, and Shift+Enter begins a new line.
text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!sendButton.disabled) form.requestSubmit();
});

stopButton.addEventListener("click", async () => {
  text.focus();
  try {
    if (sessionId) await call(`${path()}/turn`, { method: "DELETE" });
  } catch (problem) {
    error.textContent = problem.message;
  }
});

if (sessionId) run(load);

/** Show the stored messages, and continue the running turn. */
async function load() {
  const response = await call(`${path()}/turn`); // First: the turn may end meanwhile.
  const stored = await (await call(path())).json();
  const parts = stored.flatMap((event) => storedParts(event).map((part) => ({ ...part, turn: event.correlation_id })));
  show(() => chat.replaceChildren(...parts.map(elementOf)));
  if (response.status !== 204) await follow(response);
}

async function send(message) {
  const sent = elementOf({ kind: "user", text: message });
  chat.append(sent);
  chat.scrollTop = chat.scrollHeight;
  let response;
  try {
    sessionId ??= await startSession();
    response = await call(`${path()}/messages`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ text: message }),
    });
  } catch (problem) {
    sent.classList.add("failed");
    text.value ||= message;
    throw problem;
  }
  await follow(response);
}

/** Show the events of a turn. If the connection is lost, continue after the last event. */
async function follow(response) {
  const turnId = response.headers.get("turn-id");
  const turn = new Turn();
  let shown = [];
  let announced = 0;
  let last = 0;
  while (response.headers.get("turn-id") === turnId) {
    try {
      for await (const event of readEvents(response.body)) {
        if (event.name === "reconnect") throw new TypeError(event.data.message); // The connection ends.
        if (last === 0) removeStored(event.data.correlation_id);
        last = event.id ?? last;
        turn.feed(event);
        const { parts } = turn;
        show(() => (shown = replace(shown, parts.map(elementOf))));
        // A part is finished if another part follows.
        while (announced < parts.length - 1) announce(parts[announced++]);
        status.textContent = turn.status;
      }
      turn.parts.slice(announced).forEach(announce);
      error.textContent = turn.error;
      if (turn.error) console.error(turn.details);
      return;
    } catch (problem) {
      if (!(problem instanceof TypeError)) throw problem; // The connection is not the cause.
    }
    status.textContent = "Reconnecting…";
    response = await reconnect(last);
  }
  response.body?.cancel();
  await load(); // This turn is not kept, or the session has another turn.
}

/** Repeat the request until the application can be reached. */
async function reconnect(last) {
  for (let seconds = 0.5; ; seconds = Math.min(2 * seconds, 8)) {
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    try {
      return await call(`${path()}/turn`, { headers: { "last-event-id": last } });
    } catch (problem) {
      if (problem.status < 500) throw problem;
    }
  }
}

/** Replace the last elements of the chat. */
function replace(before, after) {
  for (const element of before) element.remove();
  chat.append(...after);
  return after;
}

/** Tell users of screen readers about a finished part. */
function announce(part) {
  const line = document.createElement("p");
  line.textContent = `${SPEAKERS[part.kind]}: ${part.text}`;
  finished.append(line);
}

/** Remove the parts of a turn that were stored, because its relay begins with the first event. */
function removeStored(correlationId) {
  for (const element of [...chat.children]) {
    const isReply = !element.classList.contains("user");
    if (isReply && element.dataset.turn && element.dataset.turn === correlationId) element.remove();
  }
}

/** Change the chat, and keep its end visible, unless the user has scrolled up. */
function show(change) {
  const isAtEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 10;
  change();
  if (isAtEnd) chat.scrollTop = chat.scrollHeight;
}

function path() {
  return `/sessions/${encodeURIComponent(sessionId)}`;
}

/** Do something while the form is busy, and show its error. */
async function run(work) {
  setBusy(true);
  try {
    await work();
  } catch (problem) {
    error.textContent = problem.message;
  } finally {
    setBusy(false);
  }
}

async function startSession() {
  const response = await call("/sessions", { method: "POST" });
  const { session_id } = await response.json();
  history.replaceState(null, "", `?session=${session_id}`);
  return session_id;
}

/** Send a request, and raise an error with the message of the application if it fails. */
async function call(path, options) {
  const response = await fetch(path, options).catch(() => {
    throw new Error("The application cannot be reached. Reload the page, and try again.");
  });
  if (response.ok) return response;
  const { detail } = await response.json().catch(() => ({}));
  console.error(response.status, response.statusText, detail);
  const message = typeof detail === "string" ? detail : "The application failed. Try again in a few minutes.";
  throw Object.assign(new Error(message), { status: response.status });
}

function setBusy(busy) {
  sendButton.disabled = busy;
  stopButton.disabled = !busy;
  status.textContent = "";
  if (!busy) return;
  error.textContent = "";
  finished.replaceChildren();
}

function elementOf({ kind, text, turn }) {
  const [element, speaker, content] = ["li", "b", "span"].map((name) => document.createElement(name));
  element.className = kind;
  if (turn) element.dataset.turn = turn;
  speaker.textContent = SPEAKERS[kind];
  content.textContent = text; // Never innerHTML: the text of an agent is not trusted.
  element.append(speaker, content);
  return element;
}
