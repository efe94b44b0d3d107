import { memo, useState } from "react";
import Markdown from "react-markdown";
import remarkGfm from "remark-gfm";

// An image could send the chat to any server, so it is shown as a link.
const COMPONENTS = {
  a: ({ href, children }) => <a href={href} target="_blank" rel="noreferrer">{children}</a>,
  img: ({ src, alt }) => <a href={src} target="_blank" rel="noreferrer">{alt || src}</a>,
};
const Text = memo(({ text }) => <Markdown remarkPlugins={[remarkGfm]} components={COMPONENTS}>{text}</Markdown>);

export function Message({ role, parts, isBusy, edit, regenerate }) {
  const [isEdited, setEdited] = useState(false);
  const text = parts.map((part) => part.text ?? "").join("");
  const save = (event) => {
    event.preventDefault();
    const edited = new FormData(event.target).get("text");
    if (edited.trim()) edit(edited);
    setEdited(false);
  };
  if (isEdited) {
    return (
      <form className="user" onSubmit={save}>
        <textarea name="text" defaultValue={text} maxLength={10000} autoFocus aria-label="Edited message" />
        <button>Send</button>
        <button type="button" onClick={() => setEdited(false)}>Cancel</button>
      </form>
    );
  }
  return (
    <article className={role}>
      {parts.map((part, index) => <Part key={index} {...part} role={role} />)}
      {role === "user"
        ? <button disabled={isBusy} onClick={() => setEdited(true)}>Edit</button>
        : <button disabled={isBusy} onClick={regenerate}>Regenerate</button>}
    </article>
  );
}

function Part({ role, type, text, toolName, input, output, data }) {
  if (type === "text") return role === "user" ? <p>{text}</p> : <Text text={text} />;
  if (type === "reasoning") return <details><summary>Thoughts</summary>{text}</details>;
  if (type === "dynamic-tool") {
    const summary = output === undefined ? `${toolName}…` : toolName;
    return <details><summary>{summary}</summary><pre>{JSON.stringify({ input, output }, null, 2)}</pre></details>;
  }
  return type === "data-content" ? <pre>{JSON.stringify(data, null, 2)}</pre> : null;
}
