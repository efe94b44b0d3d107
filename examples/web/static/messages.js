// The list of messages: shows the parts of a chat, and changes only elements whose part has changed.

import { create, showMarkdown, showText } from "./markdown.js";
import { ENDS } from "./turn.js";

const [chat, finished, jumpButton] = ["chat", "finished", "jump"].map((id) => document.getElementById(id));

const FOLDED = { reasoning: "Thinking", tool_call: "Tool call", tool_result: "Tool result" };
const MEMBERS = ["kind", "text", "agent", "time", "isFailed"];
let shown = [];
let endTop = 0; // The position at which the end was last visible.

/** Show parts, each with MEMBERS. Keep the end visible, unless the user has scrolled up. */
export function show(parts) {
  const wasAtEnd = isAtEnd() || (jumpButton.hidden && chat.scrollTop === endTop);
  for (const [index, part] of parts.entries()) {
    const old = shown[index] ?? {};
    if (MEMBERS.every((name) => old[name] === part[name])) continue;
    if (index >= chat.children.length) chat.append(createItem(part.kind));
    else if (old.kind !== part.kind) chat.children[index].replaceWith(createItem(part.kind));
    updateItem(chat.children[index], part);
  }
  while (chat.children.length > parts.length) chat.lastChild.remove();
  shown = parts;
  if (wasAtEnd) scrollToEnd();
  jumpButton.hidden = isAtEnd();
}

const isAtEnd = () => chat.scrollHeight - chat.scrollTop - chat.clientHeight < 10;
export function scrollToEnd() {
  chat.scrollTop = chat.scrollHeight;
  endTop = chat.scrollTop;
}
new ResizeObserver(() => jumpButton.hidden && scrollToEnd()).observe(chat);

chat.addEventListener("scroll", () => { jumpButton.hidden = isAtEnd(); });
jumpButton.addEventListener("click", () => {
  scrollToEnd();
  chat.focus();
});

chat.addEventListener("click", async ({ target }) => {
  if (!target.matches(".copy")) return;
  const copying = navigator.clipboard?.writeText(target.nextElementSibling.textContent); // Needs HTTPS.
  target.textContent = await copying?.then(() => "Copied", () => null) ?? "Copying failed";
});

/** Tell users of screen readers about the parts from `index` to `end`, which are finished. Return the next index. */
export function announce(index, end) {
  for (; index < end; index++) {
    const { kind, agent } = shown[index];
    const speaker = FOLDED[kind] || ENDS[kind] ? "" : `${speakerOf(kind, agent)}: `;
    finished.append(create("p", {}, speaker, chat.children[index].querySelector("summary, .content").innerText));
  }
  return index;
}

const speakerOf = (kind, agent) => (kind === "user" ? "You" : (agent ?? "Agent"));

function createItem(kind) {
  const content = create("div", { className: "content" });
  if (FOLDED[kind]) return create("li", {}, create("details", {}, create("summary"), content));
  return create("li", {}, ...(ENDS[kind] ? [] : [create("h2")]), content);
}

function updateItem(item, { kind, text, agent, time, isFailed }) {
  item.className = isFailed ? `${kind} failed` : kind;
  const [heading, summary, content] = ["h2", "summary", ".content"].map((selector) => item.querySelector(selector));
  if (heading) showText(heading, [speakerOf(kind, agent), timeText(time), isFailed && "failed"].filter(Boolean).join(" · "));
  if (summary) showText(summary, `${FOLDED[kind]}: ${text.slice(0, 200).trim().replace(/\s+/g, " ")}`);
  (kind === "text" ? showMarkdown : showText)(content, text);
}

export function timeText(time) {
  return new Date(time).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
}
