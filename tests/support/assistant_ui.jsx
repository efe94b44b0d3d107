// A chat with the components of assistant-ui, over the routes of `useChat` in `examples/usechat`.
// With `&mark` in the URL, the page marks edits, which assistant-ui does not.
import {
  ActionBarPrimitive, AssistantRuntimeProvider, ComposerPrimitive, MessagePrimitive, ThreadPrimitive,
} from "@assistant-ui/react";
import { AssistantChatTransport, useChatRuntime } from "@assistant-ui/react-ai-sdk";
import { useState } from "react";
import { createRoot } from "react-dom/client";

const parameters = new URLSearchParams(location.search);
const id = parameters.get("id");
const userIds = (messages) => messages.filter(({ role }) => role === "user").map((message) => message.id);

function createTransport(messages) {
  let known = userIds(messages); // The user's messages that the application has stored.
  return new AssistantChatTransport({
    api: "/api/chat",
    fetch: async (url, options) => {
      const response = await fetch(url, options);
      if (response.ok) known = userIds(JSON.parse(options.body).messages);
      return response;
    },
    prepareSendMessagesRequest: ({ messages, trigger, messageId, body }) => {
      const ids = userIds(messages);
      const isEdit = !known.every((each) => ids.includes(each));
      const mark = isEdit && parameters.has("mark") ? ids.at(-1) : messageId;
      return { body: { ...body, id, messages, trigger, messageId: mark } };
    },
  });
}

const UserMessage = () => (
  <MessagePrimitive.Root render={<article />}>
    <MessagePrimitive.Parts />
    <ActionBarPrimitive.Edit>Edit</ActionBarPrimitive.Edit>
  </MessagePrimitive.Root>
);
const AssistantMessage = () => (
  <MessagePrimitive.Root render={<article />}>
    <MessagePrimitive.Parts />
    <ActionBarPrimitive.Reload>Regenerate</ActionBarPrimitive.Reload>
  </MessagePrimitive.Root>
);
const EditComposer = () => (
  <ComposerPrimitive.Root>
    <ComposerPrimitive.Input name="edited" />
    <ComposerPrimitive.Send>Save</ComposerPrimitive.Send>
  </ComposerPrimitive.Root>
);

function App({ messages }) {
  const [alert, setAlert] = useState("");
  const [transport] = useState(() => createTransport(messages));
  const runtime = useChatRuntime({ transport, messages, onError: ({ message }) => setAlert(message) });
  return (
    <AssistantRuntimeProvider runtime={runtime}>
      <ThreadPrimitive.Messages components={{ UserMessage, EditComposer, AssistantMessage }} />
      <ComposerPrimitive.Root className="composer">
        <ComposerPrimitive.Input name="text" />
        <ComposerPrimitive.Send>Send</ComposerPrimitive.Send>
      </ComposerPrimitive.Root>
      <p role="alert">{alert}</p>
    </AssistantRuntimeProvider>
  );
}

if (id) {
  const { messages } = await fetch(`/api/chat/${id}`).then((response) => response.json());
  createRoot(document.body).render(<App messages={messages} />);
}
