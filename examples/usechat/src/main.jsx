import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { call, problem } from "./api.js";
import { Chat } from "./Chat.jsx";
import { Composer } from "./Composer.jsx";
import "./style.css";

function App() {
  const [id, setId] = useState(new URLSearchParams(location.search).get("id"));
  const [chats, setChats] = useState(null); // null: not loaded
  const [isLoggedOut, setLoggedOut] = useState(false);
  const [alert, setAlert] = useState("");

  const run = async (work) => {
    setAlert("");
    try {
      return await work();
    } catch (error) {
      if (error.status === 401) setLoggedOut(true);
      else setAlert(problem(error).detail);
      throw error;
    }
  };
  const list = () => run(async () => setChats(await call("GET", "/api/chats"))).catch(() => {});
  const open = (chat) => {
    history.pushState(null, "", chat ? `?id=${chat}` : "/");
    setId(chat);
  };
  useEffect(() => {
    list();
    const onPopState = () => setId(new URLSearchParams(location.search).get("id"));
    addEventListener("popstate", onPopState);
    return () => removeEventListener("popstate", onPopState);
  }, []);

  if (isLoggedOut) return <Login onDone={() => setLoggedOut(false) || list()} />;
  const create = (text) => run(async () => {
    open((await call("POST", "/api/chats", { text })).id);
    list();
  });
  const rename = (chat, text) => run(() => call("PUT", `/api/chats/${chat}`, { text })).then(list, () => {});
  const remove = (chat) => run(async () => {
    await call("DELETE", `/api/chats/${chat}`);
    if (chat === id) open(null);
    list();
  }).catch(() => {});
  return (
    <>
      <nav aria-label="Chats">
        <button onClick={() => open(null)}>New chat</button>
        <button onClick={() => call("DELETE", "/api/login").then(() => location.assign("/"))}>Log out</button>
        <ul>
          {chats?.map((chat) => (
            <Item key={chat.id} {...chat} isOpen={chat.id === id} open={open} rename={rename} remove={remove} />
          ))}
        </ul>
      </nav>
      <main>
        {id ? <Chat key={id} id={id} /> : <><div className="messages" /><Composer onSend={create} /></>}
        <p role="alert">{alert}</p>
      </main>
    </>
  );
}

function Item({ id, title, isOpen, open, rename, remove }) {
  const [isEdited, setEdited] = useState(false);
  const save = (event) => {
    event.preventDefault();
    const text = new FormData(event.target).get("title");
    if (text.trim()) rename(id, text);
    setEdited(false);
  };
  if (isEdited) {
    return <li><form onSubmit={save}><input name="title" defaultValue={title} maxLength={60} autoFocus aria-label="Title" /></form></li>;
  }
  return (
    <li aria-current={isOpen ? "page" : undefined}>
      <button className="title" onClick={() => open(id)}>{title}</button>
      <button aria-label={`Rename ${title}`} onClick={() => setEdited(true)}>✎</button>
      <button aria-label={`Delete ${title}`} onClick={() => confirm(`Delete “${title}”?`) && remove(id)}>✕</button>
    </li>
  );
}

function Login({ onDone }) {
  const [alert, setAlert] = useState("");
  const logIn = (event) => {
    event.preventDefault();
    const name = new FormData(event.target).get("name");
    call("POST", "/api/login", { name }).then(onDone, () => setAlert("Use up to 60 letters and digits."));
  };
  return (
    <main>
      <form onSubmit={logIn}>
        <input name="name" required autoFocus aria-label="Name" placeholder="Your name" />
        <button>Log in</button>
      </form>
      <p role="alert">{alert}</p>
    </main>
  );
}

createRoot(document.body).render(<App />);
