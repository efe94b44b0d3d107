// Uses the AI SDK's class behind `useChat`, or its class for Vue.
// Usage: node use_chat.mjs SERVER SESSION [vue], where the agent calls a tool in its first two turns,
// and waits in its third turn. Prints JSON.
import { createRequire } from "node:module";

const load = createRequire(`${process.cwd()}/`); // The packages are installed there.
const { AbstractChat, DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls } = load("ai");
const [server, id, vue] = process.argv.slice(2);

class State {
  status = "ready";
  error = undefined;
  constructor(messages = []) {
    this.messages = messages;
  }
  pushMessage = (message) => (this.messages = [...this.messages, message]);
  popMessage = () => (this.messages = this.messages.slice(0, -1));
  replaceMessage = (at, message) => (this.messages = this.messages.toSpliced(at, 1, message));
  snapshot = (value) => structuredClone(value);
}

class OwnChat extends AbstractChat {
  constructor({ messages, ...options }) {
    super({ ...options, state: new State(messages) });
  }
}
const Chat = vue ? load("@ai-sdk/vue").Chat : OwnChat;

const bodies = [], finishReasons = [];
async function recording(url, options) {
  if (options.body) bodies.push(JSON.parse(options.body));
  return fetch(url, options);
}
const options = {
  id,
  transport: new DefaultChatTransport({ api: `${server}/api/chat`, fetch: recording }),
  sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
  onFinish: ({ finishReason }) => finishReasons.push(finishReason ?? null),
};
const chat = new Chat(options);
const ends = [];
const end = ({ status, error }) => ends.push([status, error?.message ?? null]);

for (const text of ["One", "Two"]) {
  await chat.sendMessage({ text });
  end(chat);
}
const { messages } = chat;

const sent = chat.sendMessage({ text: "Three" });
while (!JSON.stringify(chat.messages.at(-1)).includes("Half")) await new Promise(setImmediate);
await fetch(`${server}/api/chat/${id}`, { method: "DELETE" });
await sent;
end(chat);

const loaded = await fetch(`${server}/api/chat/${id}`).then((response) => response.json());
const reloaded = new Chat({ ...options, messages: structuredClone(loaded.messages) });
await reloaded.resumeStream();
end(reloaded);

await reloaded.regenerate();
await reloaded.regenerate({ messageId: messages[1].id });
reloaded.messages = structuredClone(loaded.messages);
await reloaded.sendMessage({ text: "One, edited", messageId: loaded.messages[0].id });
console.log(JSON.stringify({ messages, ends, finishReasons, loaded: loaded.messages, bodies }));
