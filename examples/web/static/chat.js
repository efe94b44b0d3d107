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
  send(text.value);
});

if (sessionId) {
  try {
    const response = await call(`/sessions/${encodeURIComponent(sessionId)}`);
    chat.append(...(await response.json()).map(elementOf));
  } catch (problem) {
    error.textContent = problem.message;
  }
}

async function send(message) {
  const stopping = new AbortController();
  stopButton.onclick = () => stopping.abort();
  setBusy(true);
  chat.append(elementOf({ kind: "user", text: message }));
  const reply = document.createElement("div");
  chat.append(reply);
  const turn = new Turn();
  try {
    sessionId ??= await startSession();
    const path = `/sessions/${encodeURIComponent(sessionId)}/messages`;
    const response = await call(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ text: message }),
      signal: stopping.signal, // Closing the connection cancels the agent.
    });
    text.value = "";
    for await (const event of readEvents(response.body)) {
      turn.feed(event);
      reply.replaceChildren(...turn.parts.map(elementOf));
      status.textContent = turn.status;
    }
    error.textContent = turn.error;
  } catch (problem) {
    if (stopping.signal.aborted) reply.append(elementOf({ kind: "stopped", text: "Stopped." }));
    else error.textContent = problem.message;
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
  const response = await fetch(path, options);
  if (response.ok) return response;
  const { detail } = await response.json().catch(() => ({}));
  throw new Error(typeof detail === "string" ? detail : `${response.status} ${response.statusText}`);
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
  element.textContent = part.text; // Never innerHTML: the text of an agent is not trusted.
  return element;
}
