// The texts of several messages in one form.
const GAP = "\n\n";

export function joined(...texts) {
  return texts.filter(Boolean).join(GAP);
}

/** Return a text without the text at its start. If the user has changed the start, nothing is removed. */
export function without(start, text) {
  if (text === start) return "";
  return start && text.startsWith(start + GAP) ? text.slice((start + GAP).length) : text;
}
