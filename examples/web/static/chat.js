// The page: sends messages, shows replies, and stops them.

import { Turn, readEvents } from "./turn.js";

const [chat, status, error, form, text, sendButton, stopButton] = [
  "chat", "status", "error", "form", "text", "send", "stop",
].map((id) => document.getElementById(id));

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
  show(() => chat.replaceChildren(...stored.map(elementOf)));
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
  const reply = document.createElement("div");
  chat.append(reply);
  const turn = new Turn();
  let last = 0;
  while (response.headers.get("turn-id") === turnId) {
    try {
      for await (const event of readEvents(response.body)) {
        if (last === 0) removeStored(event.data.correlation_id);
        last = event.id ?? last;
        turn.feed(event);
        show(() => reply.replaceChildren(...turn.parts.map(elementOf)));
        status.textContent = turn.status;
      }
      error.textContent = turn.error;
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
    try {
      return await call(`${path()}/turn`, { headers: { "last-event-id": last } });
    } catch (problem) {
      if (problem.status < 500) throw problem;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  }
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
  const message = typeof detail === "string" ? detail : `${response.status} ${response.statusText}`;
  throw Object.assign(new Error(message), { status: response.status });
}

function setBusy(busy) {
  sendButton.disabled = busy;
  stopButton.disabled = !busy;
  status.textContent = "";
  if (busy) error.textContent = "";
}

function elementOf(part) {
  const element = document.createElement("div");
  element.className = part.kind;
  if (part.turn) element.dataset.turn = part.turn;
  element.textContent = part.text; // Never innerHTML: the text of an agent is not trusted.
  return element;
}
