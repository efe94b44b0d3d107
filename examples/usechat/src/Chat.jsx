import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { useEffect, useRef, useState } from "react";
import { call, problem } from "./api.js";
import { Composer } from "./Composer.jsx";
import { Message } from "./Message.jsx";
import { joined, without } from "./texts.js";

export function Chat({ id }) {
  const path = `/api/chat/${id}`;
  const state = useRef({ failures: 0, actions: [] }).current; // isStopped, isClosed, mustReconnect, timer
  const [alert, setAlert] = useState(null);
  const [draft, setDraft] = useState("");
  const stop = () => call("DELETE", path).catch((error) => setAlert(problem(error)));
  const [transport] = useState(() => new DefaultChatTransport({
    fetch: async (url, options) => {
      const response = await fetch(url, options);
      // Another turn has begun since `refresh` has loaded the messages, or another process, without
      // Redis, has responded.
      if (response.status === 204) state.mustReconnect = true;
      else if (response.ok) state.failures = 0;
      if (options.method !== "POST" || !response.ok) return response;
      state.actions.pop(); // The message was sent.
      if (state.isStopped) stop(); // The turn may have been unknown before.
      return response;
    },
  }));
  const chat = useChat({
    id,
    transport,
    throttle: 50, // Milliseconds between two renderings.
    onData: ({ type }) => {
      if (type === "data-reconnect") state.mustReconnect = true; // A restart.
    },
    onError: (error) => {
      if (error instanceof TypeError) state.mustReconnect = true;
      else if (error.statusCode && state.actions.length) undo(problem(error));
      else if (!state.mustReconnect) setAlert(problem(error));
    },
    onFinish: ({ isAbort, isError, finishReason }) => {
      // A proxy may hide a lost connection. A complete reply has a `finishReason`.
      const hasEnded = isAbort || isError || finishReason || state.isStopped;
      if (state.mustReconnect || !hasEnded) reconnect();
    },
  });
  const isBusy = ["submitted", "streaming"].includes(chat.status);

  function reconnect() {
    clearTimeout(state.timer);
    state.timer = setTimeout(refresh, Math.min(1000 * 2 ** state.failures++, 8000));
  }

  /** Show the stored messages, and join the running turn. */
  async function refresh() {
    clearTimeout(state.timer);
    state.isStopped = false;
    try {
      const { messages, turn } = await call("GET", path);
      if (state.isClosed) return;
      state.mustReconnect = false;
      setAlert(null);
      chat.setMessages(messages);
      chat.clearError();
      const lost = lostTexts(sentOf(messages).map(textOf), state.actions);
      setDraft((draft) => joined(...lost, draft));
      state.actions = [];
      if (turn) await chat.resumeStream({ headers: { "turn-id": turn } });
      else state.failures = 0;
      if (state.mustReconnect) reconnect(); // Without `onFinish`.
    } catch (error) {
      setAlert(problem(error));
      if (!(error.status < 500)) reconnect();
    }
  }

  /** Send, edit or regenerate a message. `index` counts only the messages of the user. */
  function act(text, send, index = sentOf(chat.messages).length) {
    clearTimeout(state.timer);
    state.isStopped = false;
    state.actions.push({ text, send, index, before: chat.messages });
    setAlert(null);
    return send();
  }

  /** Show the messages as before the failed action. Its text returns to the form. */
  function undo({ detail, sent }) {
    const { text, send, index, before } = state.actions.pop();
    chat.setMessages(before);
    setDraft((draft) => joined(text, draft));
    const sendAgain = () => {
      setDraft((draft) => without(text, draft));
      act(text, send, index);
    };
    setAlert({ detail, again: sent === "no" ? sendAgain : refresh, sent });
  }

  useEffect(() => {
    state.isClosed = false;
    refresh();
    return () => {
      state.isClosed = true;
      clearTimeout(state.timer);
    };
  }, []);
  useEffect(() => {
    if (isBusy) return; // Another tab may have sent messages.
    const onVisible = () => document.hidden || refresh();
    document.addEventListener("visibilitychange", onVisible);
    return () => document.removeEventListener("visibilitychange", onVisible);
  }, [isBusy]);

  return (
    <>
      <div className="messages" role="log">
        {chat.messages.map((message, number) => (
          <Message
            key={message.id} {...message} isBusy={isBusy}
            edit={(text) => act(
              text,
              () => chat.sendMessage({ text, messageId: message.id }),
              sentOf(chat.messages.slice(0, number)).length,
            )}
            regenerate={() => act("", () => chat.regenerate({ messageId: message.id }))}
          />
        ))}
      </div>
      <p role="status">{isBusy ? "The agent is replying…" : ""}</p>
      <p role="alert">
        {alert?.detail} {alert?.again && (
          <button onClick={alert.again}>{alert.sent === "no" ? "Send again" : "Reload messages"}</button>
        )}
      </p>
      <Composer
        draft={draft} isBusy={isBusy}
        onSend={(text) => {
          setDraft("");
          return act(text, () => chat.sendMessage({ text }));
        }}
        onStop={() => { state.isStopped = true; stop(); }}
      />
    </>
  );
}

function sentOf(messages) {
  return messages.filter(({ role }) => role === "user");
}

function textOf(message) {
  return message.parts.map((part) => part.text ?? "").join("");
}

/** Return the texts of the lost requests that have not reached the application. */
function lostTexts(stored, actions) {
  const lost = [];
  for (const { text, index } of actions) {
    if (text && stored[index - lost.length] !== text) lost.push(text);
  }
  return lost;
}
