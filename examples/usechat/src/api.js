/** Send a request, and return the JSON of its response. Raise an error with the application's sentence. */
export async function call(method, path, data) {
  const headers = { "content-type": "application/json" };
  const body = data && JSON.stringify(data);
  const response = await fetch(path, { method, headers, body });
  const text = await response.text();
  if (!response.ok) throw Object.assign(new Error(text), { status: response.status });
  return text && JSON.parse(text);
}

/** Return the sentence of an error for the user, and whether the message was sent. */
export function problem(error) {
  const unreachable = { detail: "The application cannot be reached." };
  if (error instanceof TypeError) return unreachable;
  try { // A response with an error status is JSON, such as {"detail": "You have no such chat."}.
    const { detail, sent } = error.payload ?? JSON.parse(error.message);
    if (detail) return { detail: typeof detail === "string" ? detail : "The message is not valid.", sent };
  } catch {
    if (!(error.status ?? error.statusCode)) return { detail: error.message };
  }
  return unreachable; // The response is from a proxy.
}
