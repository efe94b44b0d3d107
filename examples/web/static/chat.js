// The page: sends messages, shows replies, stops them, and lists the chats.

import { create, patch } from "./markdown.js";
import { announce, scrollToEnd, show, timeText } from "./messages.js";
import { ENDS, Turn, endPart, readEvents, storedParts } from "./turn.js";

const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));

// The id of the session is in the URL, so that the chat continues after a reload. The application
// checks that the session belongs to the user.
let sessionId = new URLSearchParams(location.search).get("session");
let starting = null; // The promise of a new session.
let parts = []; // The parts of the chat, without the running turn.
let stopping = null; // While the form is busy, a promise that fails when the user stops the work.
let retry; // The function of the button next to an error.

ui.form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (ui.text.value.trim()) run(() => send(ui.text.value));
});

// Enter sends the message, and Shift+Enter begins a new line. Escape stops the reply.
document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.shiftKey) return;
  if (event.key === "Escape") ui.stop.click();
  if (event.key !== "Enter" || event.target !== ui.text) return;
  event.preventDefault();
  if (!stopping) ui.form.requestSubmit();
  else ui.hint.textContent = "The agent is replying. Send your message after the reply, or stop the reply with Escape.";
});

ui.stop.addEventListener("click", () => {
  ui.text.focus();
  stopping.isStopped = true;
  stopping.reject(new Error("Stopped. The message was not sent."));
  if (sessionId) stopTurn().catch(({ message }) => { ui.error.textContent = message; });
});

ui.retry.addEventListener("click", () => {
  ui.text.focus();
  run(retry);
});

// Another tab may have sent messages.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !stopping && sessionId) load().catch(() => {});
});

// A reload of the page keeps the text of the form.
const draft = () => `draft ${sessionId ?? ""}`;
ui.text.value ||= sessionStorage.getItem(draft()) ?? "";
sessionStorage.removeItem(draft());
addEventListener("pagehide", () => sessionStorage.setItem(draft(), ui.text.value));

ui.sidebar.open = matchMedia("(width >= 45rem)").matches;
const listed = showChats();
if (sessionId) run(load);

/** Show the stored messages, and continue the running turn. Do nothing if the user sends a message meanwhile. */
async function load() {
  const work = stopping;
  const response = await call(`${path()}/turn`); // First: the turn may end meanwhile.
  const events = await (await call(path())).json();
  if (stopping !== work) return response.body?.cancel();
  const stored = events.flatMap((event) => storedParts(event).map((part) => ({ ...part, turn: event.correlation_id })));
  const isRunning = response.status !== 204;
  show((parts = withEnds(stored, isRunning)));
  showChats();
  if (isRunning) await (work ? follow(response) : run(() => follow(response)));
}

/** Mark the turns without a complete reply. This browser knows which turns were stopped. */
function withEnds(stored, isRunning) {
  return stored.flatMap((part, index) => {
    const next = stored[index + 1];
    if (next ? next.turn === part.turn : isRunning) return [part];
    const end = localStorage.getItem(`turn ${part.turn}`) ?? (part.kind === "user" && "unanswered");
    return end && !ENDS[part.kind] ? [part, endPart(end)] : [part];
  });
}

async function send(message) {
  if (ui.text.value === message) ui.text.value = "";
  const sent = { kind: "user", text: message, time: Date.now() };
  const earlier = parts.filter(({ isFailed }) => !isFailed);
  show((parts = [...earlier, sent]));
  scrollToEnd();
  let response;
  try {
    if (!sessionId) await Promise.race([(starting ??= startSession(message)), stopping.promise]);
    response = await call(`${path()}/messages`, post({ text: message }));
  } catch (problem) {
    show((parts = [...earlier, { ...sent, isFailed: true }]));
    ui.text.value ||= message;
    // After the other errors, the server may have stored the message.
    if (!sessionId || problem.status < 500 || problem.sent === "no") problem.retry = () => send(message);
    throw problem;
  }
  if (stopping.isStopped) await stopTurn(); // Earlier, the application may not have known the turn.
  await follow(response);
}

async function startSession(message) {
  await listed; // It creates a new user. Two requests at once could create two users.
  const response = await call("/sessions", post({ text: message })).finally(() => { starting = null; });
  sessionId = (await response.json()).session_id;
  history.replaceState(null, "", `?session=${sessionId}`);
  showChats();
}

/** Show the events of a turn. */
async function follow(response) {
  const turn = new Turn();
  let frame = 0;
  let announced;
  const draw = (isEnd) => {
    cancelAnimationFrame(frame);
    frame = 0;
    // The relay begins with the first event, so the stored parts of the turn are left out.
    const before = parts.filter((part) => part.kind === "user" || !part.turn || part.turn !== turn.id);
    const all = [...before, ...turn.parts];
    show(all);
    // A part is finished if another part follows.
    announced = announce(announced ?? before.length, isEnd ? all.length : all.length - 1);
    return all;
  };
  const isRead = await readTurn(response, (event) => {
    turn.feed(event);
    ui.status.textContent = turn.status;
    frame ||= requestAnimationFrame(() => draw(false)); // Many events can arrive together.
  });
  parts = draw(true);
  if (!isRead) return load(); // The turn is not kept, or the session has another turn.
  if (turn.end) localStorage.setItem(`turn ${turn.id}`, turn.end);
  if (!turn.error) return;
  console.error(turn.details);
  const message = parts.findLast(({ kind }) => kind === "user").text;
  throw Object.assign(new Error(turn.error), { retry: turn.status === "error" ? () => send(message) : load });
}

/** Pass the events of a turn to a function, also after a lost connection. Return whether all were read. */
async function readTurn(response, onEvent) {
  const turnId = response.headers.get("turn-id");
  let last = 0;
  while (response.headers.get("turn-id") === turnId) {
    try {
      for await (const event of readEvents(response.body)) {
        if (event.name === "reconnect") throw new TypeError(event.data.message);
        last = event.id ?? last;
        onEvent(event);
      }
      return true;
    } catch (problem) {
      if (!(problem instanceof TypeError)) throw problem; // The connection is not the cause.
    }
    ui.status.textContent = "Reconnecting…";
    response = await reconnect(last);
  }
  response.body?.cancel();
  return false;
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

/** Show the list of the user's chats. If it cannot be loaded, keep the present list. */
async function showChats() {
  const response = await call("/sessions").catch(() => null);
  if (!response) return;
  const chats = await response.json();
  patch(ui.chats, create("ul", {}, ...chats.map(chatItem)));
  ui.title.textContent = chats.find(({ id }) => id === sessionId)?.title ?? "Chat";
}

function chatItem({ id, title, time }) {
  const properties = { href: `/?session=${encodeURIComponent(id)}`, ariaCurrent: id === sessionId ? "page" : null };
  return create("li", {}, create("a", properties, title ?? "Untitled chat", create("time", {}, timeText(time))));
}

function path() {
  return `/sessions/${encodeURIComponent(sessionId)}`;
}

/** Do something while the form is busy. If it fails, show its error, and a button to continue. */
async function run(work) {
  setBusy(true);
  try {
    await work();
  } catch (problem) {
    ui.error.textContent = problem.message;
    retry = problem.retry ?? (sessionId && load);
    ui.retry.hidden = !retry;
    ui.retry.textContent = retry === load ? "Reload messages" : "Send again";
  } finally {
    setBusy(false);
  }
}

function stopTurn() {
  return call(`${path()}/turn`, { method: "DELETE" });
}

function post(data) {
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(data) };
}

/** Send a request, and raise an error with the message of the application if it fails. */
async function call(path, options) {
  const response = await fetch(path, options).catch(() => {
    throw new Error("The application cannot be reached. Try again in a few minutes.");
  });
  if (response.ok) return response;
  const { detail, sent } = await response.json().catch(() => ({}));
  console.error(response.status, response.statusText, detail);
  const message = typeof detail === "string" ? detail : "The application failed. Try again in a few minutes.";
  throw Object.assign(new Error(message), { status: response.status, sent });
}

function setBusy(busy) {
  ui.send.disabled = busy;
  ui.stop.disabled = !busy;
  ui.status.textContent = ui.hint.textContent = "";
  stopping = busy ? Promise.withResolvers() : null;
  if (!busy) return;
  stopping.promise.catch(() => {}); // Usually, nothing waits for it.
  ui.error.textContent = "";
  ui.retry.hidden = true;
  ui.finished.replaceChildren();
}
