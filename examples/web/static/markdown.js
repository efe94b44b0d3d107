// Shows texts and Markdown of an agent, which is not trusted, and keeps the nodes that did not change.

import DOMPurify from "./vendor/dompurify-3.5.0.js";
import { Marked } from "./vendor/marked-18.2.1.js";

const marked = new Marked({
  breaks: true,
  tokenizer: { html() {}, tag() {} }, // HTML is shown as text.
  renderer: {
    // The page and each message have a heading, too: a level must not be left out.
    heading({ tokens, depth }) { return `<h3 class="depth${depth}">${this.parser.parseInline(tokens)}</h3>`; },
    image(token) { return this.link(token); }, // Loading an image would send its URL to any server.
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const SAFE = {
  ALLOWED_TAGS: "a blockquote br code del em h3 hr li ol p pre strong table tbody td th thead tr ul".split(" "),
  ALLOWED_ATTR: ["align", "class", "href", "start"],
  ADD_URI_SAFE_ATTR: ["align", "start"], // The next rule is for all other attributes.
  ALLOWED_URI_REGEXP: /^(https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

/** Show Markdown in an element. Only blocks that have changed are parsed again. */
export function showMarkdown(element, text) {
  const blocks = marked.lexer(text);
  const links = JSON.stringify(blocks.links); // The end of a text can define a link in its first block.
  const shown = blocks.filter(({ type }) => type !== "space" && type !== "def");
  for (const [index, block] of shown.entries()) {
    const child = element.children[index] ?? element.appendChild(create("div"));
    const source = block.raw + links;
    if (child.source === source) continue;
    child.source = source;
    patch(child, decorated(DOMPurify.sanitize(marked.parser([block]).trim(), SAFE)));
  }
  while (element.children.length > shown.length) element.lastChild.remove();
}

/** Show text in an element. */
export function showText(element, text) {
  patch(element, create("div", {}, text));
}

/** Return a new element with these properties and children. */
export function create(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function decorated(fragment) {
  for (const link of fragment.querySelectorAll("a")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  for (const code of fragment.querySelectorAll("pre")) code.before(create("button", { className: "copy" }, "Copy"));
  return fragment;
}

/** Make the children of an element equal to those of `wanted`. Selected text stays selected. */
export function patch(element, wanted) {
  const nodes = [...wanted.childNodes];
  for (const [index, node] of nodes.entries()) {
    const old = element.childNodes[index];
    if (!old) element.append(node);
    else if (old.isEqualNode(node)) continue;
    else if (old.nodeType === Node.TEXT_NODE && node.nodeType === Node.TEXT_NODE) replaceEnd(old, node.data);
    else if (old.cloneNode().isEqualNode(node.cloneNode())) patch(old, node);
    else old.replaceWith(node);
  }
  while (element.childNodes.length > nodes.length) element.lastChild.remove();
}

function replaceEnd(node, text) {
  let same = 0;
  while (same < node.length && node.data[same] === text[same]) same++;
  node.replaceData(same, node.length - same, text.slice(same));
}
