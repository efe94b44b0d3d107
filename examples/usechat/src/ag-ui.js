import { HttpAgent } from "@ag-ui/client";
import { call, problem } from "./api.js";
import { joined } from "./texts.js";
import "./style.css";

const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const threadId = new URLSearchParams(location.search).get("id");
const agent = new HttpAgent({ url: "/agent", threadId });
const path = `/agent/${threadId}`;
let isEnded; // The run has ended: its last event has been received.
let failure; // The sentence of a run that has failed.
let isStopped;
const stop = () => call("DELETE", path).catch((error) => { ui.problem.textContent = problem(error).detail; });
agent.subscribe({
  onRunStartedEvent: () => {
    if (isStopped && agent.url === "/agent") stop(); // The turn was unknown before.
  },
  onRunFinishedEvent: () => { isEnded = true; },
  onRunErrorEvent: ({ event }) => {
    isEnded = event.code !== "RelayEnded";
    failure = event.message;
  },
  onMessagesChanged: ({ messages }) => ui.chat.replaceChildren(...messages.map(shown)),
});

function shown({ role, content, toolCalls }) {
  const item = document.createElement("li");
  item.className = role;
  item.textContent = typeof content === "string" ? content : JSON.stringify(toolCalls ?? content);
  return item;
}

/** Run the agent. After a lost connection, load the messages and the rest. */
async function run(url, options) {
  while (!(await runOnce(url, options))) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    [url, options] = ["/agent/history"];
  }
}

const load = () => run("/agent/history");

/** Return whether the run has ended. If the connection was lost, it has not. */
async function runOnce(url, options) {
  const { messages } = agent;
  [isEnded, failure] = [false, null];
  agent.url = url;
  // The client keeps reasoning messages that the snapshot does not have.
  if (url === "/agent/history") agent.setMessages([]);
  const error = await agent.runAgent(options).then(() => null, (error) => error);
  if (!isEnded && !agent.messages.length) agent.setMessages(messages);
  // The application has refused the message, or the chat does not exist.
  if (error?.status && (error.status < 500 || url === "/agent")) throw error;
  if (isEnded && failure && !isStopped) throw new Error(failure);
  return isEnded;
}

/** Start a turn with the text of the last message. It replaces the last turn. */
async function regenerate() {
  const last = agent.messages.findLastIndex(({ role }) => role === "user");
  agent.setMessages(agent.messages.slice(0, last + 1));
  await run("/agent", { forwardedProps: { replaces: true } });
}

/** Work while the form is busy, and show the error. */
async function busy(work) {
  [ui.send.disabled, ui.regenerate.disabled, ui.stop.disabled] = [true, true, false];
  isStopped = false;
  ui.problem.textContent = "";
  const before = agent.messages;
  try {
    await work();
  } catch (error) {
    if (error.status) agent.setMessages(before);
    ui.problem.textContent = problem(error).detail;
    throw error;
  } finally {
    [ui.send.disabled, ui.regenerate.disabled, ui.stop.disabled] = [false, false, true];
  }
}

ui.form.addEventListener("submit", (event) => {
  event.preventDefault();
  const content = ui.text.value;
  const count = () => agent.messages.filter((each) => each.role === "user" && each.content === content).length;
  const before = count();
  ui.text.value = "";
  busy(async () => {
    agent.addMessage({ id: crypto.randomUUID(), role: "user", content });
    await run("/agent");
  }).catch(() => {}).then(() => {
    // The request was refused, or has not reached the application.
    if (count() === before) ui.text.value = joined(content, ui.text.value);
  });
});

ui.regenerate.addEventListener("click", () => busy(regenerate).catch(() => {}));

ui.stop.addEventListener("click", () => {
  isStopped = true;
  stop();
});

busy(load).catch(() => {});
