import { useEffect, useRef, useState } from "react";
import { joined, without } from "./texts.js";

/** The form for a message. `onSend` may reject: then the form gets its text again. */
export function Composer({ onSend, onStop, isBusy = false, draft = "" }) {
  const [text, setText] = useState(draft);
  const [isSending, setSending] = useState(false);
  const last = useRef(draft);
  // A message that was not sent returns to the form, before the text that the user has written since.
  useEffect(() => {
    const before = last.current;
    last.current = draft;
    setText((text) => joined(draft, without(before, text)));
  }, [draft]);

  const send = async (event) => {
    event.preventDefault();
    if (isBusy || isSending || !text.trim()) return;
    setSending(true);
    setText("");
    await onSend(text).catch(() => setText((newer) => joined(text, newer)));
    setSending(false);
  };
  // Enter sends the message, and Shift+Enter begins a new line.
  const onKeyDown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    event.target.form.requestSubmit();
  };
  return (
    <form className="composer" onSubmit={send}>
      <textarea
        rows="1" autoFocus maxLength={10000} aria-label="Message"
        value={text} onChange={(event) => setText(event.target.value)} onKeyDown={onKeyDown}
      />
      <button disabled={isBusy || isSending}>Send</button>
      {onStop && <button type="button" disabled={!isBusy} onClick={onStop}>Stop</button>}
    </form>
  );
}
