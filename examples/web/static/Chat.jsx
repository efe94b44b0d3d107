import { fetchEventSource } from "@microsoft/fetch-event-source";
import { useRef, useState } from "react";
import { Turn } from "./turn.js";

export function Chat({ sessionId }) {
  const [parts, setParts] = useState([]);
  const [error, setError] = useState("");
  const request = useRef(null);

  async function send(event) {
    event.preventDefault();
    const text = event.target.elements.text.value;
    request.current?.abort();
    request.current = new AbortController();
    setError("");
    try {
      await follow(new Turn(), `/sessions/${sessionId}/messages`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ text }),
      });
    } catch (problem) {
      setError(problem.message);
    }
  }

  async function follow(turn, url, options) {
    let last = options.headers["last-event-id"];
    let isEnded = false;
    await fetchEventSource(url, {
      ...options,
      signal: request.current.signal,
      // By default, it sends the message again when a hidden page is shown.
      openWhenHidden: true,
      async onopen(response) {
        if (!response.ok) throw new Error((await response.json()).detail);
        if (response.status === 204) throw new Error("Reload the page to see the reply.");
      },
      onmessage({ event, id, data }) {
        isEnded = event === "reconnect"; // The application has ended the relay.
        last = id || last;
        turn.feed({ name: event, data: JSON.parse(data) });
        setParts(turn.parts);
        setError(turn.error);
      },
      onerror(problem) {
        throw problem; // By default, it sends the message again.
      },
    });
    if (isEnded) {
      await new Promise((resolve) => setTimeout(resolve, 1000));
      const headers = { "last-event-id": last ?? "0" };
      await follow(turn, `/sessions/${sessionId}/turn`, { headers });
    }
  }

  // The turn's relays end with an event that `Turn` shows as a part.
  const stop = () => fetch(`/sessions/${sessionId}/turn`, { method: "DELETE" });

  return (
    <form onSubmit={send}>
      {parts.map(({ kind, text }, index) => (
        <p key={index} className={kind}>{text}</p>
      ))}
      <p role="alert">{error}</p>
      <input name="text" required aria-label="Message" />
      <button>Send</button>
      <button type="button" onClick={stop}>Stop</button>
    </form>
  );
}
