// The one place that talks to the server: the public API, as any client does, in the session of this browser.

/** What the server refused, in its own words. */
export class ApiError extends Error {
  constructor(status, error, requestId) {
    super(error.message);
    this.status = status;
    this.code = error.code;
    this.param = error.param;
    this.details = error;
    this.requestId = requestId;
  }
}

/** The server could not be reached, or answered with nothing that it would say. */
export class Unreachable extends Error {}

export const session = { current: null };
export const connection = new EventTarget();
let online = true;

/** Whether the last request got an answer. */
export function isOnline() {
  return online;
}

/** Say whether the server was reached; whoever listens to `connection` hears of a change. */
export function noteConnection(reached) {
  if (reached === online) return;
  online = reached;
  connection.dispatchEvent(new CustomEvent("change", { detail: reached }));
}

/**
 * Send a request and return the parsed reply. `body` is sent as JSON, a FormData or a Blob as it is.
 * Raises ApiError for a refusal, Unreachable without an answer, and AbortError where `signal` ends it.
 */
export async function api(path, options = {}) {
  const reply = await send(path, options);
  return reply.status === 204 ? null : reply.json();
}

/** Send a request and return the reply itself, for bytes and headers. */
export async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (method !== "GET" && session.current) sent["x-csrf-token"] = session.current.csrf_token;
  const raw = body instanceof FormData || body instanceof Blob || body === undefined;
  if (!raw) sent["content-type"] = "application/json";
  let reply;
  try {
    reply = await fetch(path, {
      method,
      headers: sent,
      signal,
      body: raw ? body : JSON.stringify(body),
      credentials: "same-origin",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    noteConnection(false);
    throw new Unreachable("The server cannot be reached.");
  }
  noteConnection(true);
  if (reply.ok) return reply;
  throw await readError(reply);
}

async function readError(reply) {
  let error;
  try {
    error = (await reply.json()).error;
  } catch {
    error = null;
  }
  const found = new ApiError(
    reply.status,
    error ?? { message: `The server answered with status ${reply.status}.`, code: null, param: null },
    reply.headers.get("x-request-id"),
  );
  if (reply.status === 401 && session.current) {
    session.current = null;
    // Without its cookie the browser sends no key, and what the server says then is for programs.
    const gone = found.message.startsWith("no API key was given");
    dispatchEvent(new CustomEvent("tether-signed-out", { detail: gone ? "Your session has ended. Sign in again." : found.message }));
  }
  return found;
}

/** Yield the items of a list, page by page, at most `most` of them. */
async function* pages(path, { signal, limit = 100, most = 1000 } = {}) {
  let after = null;
  for (let left = most; left > 0; ) {
    const query = new URLSearchParams({ limit: String(Math.min(limit, left)), ...(after ? { after } : {}) });
    const page = await api(`${path}${path.includes("?") ? "&" : "?"}${query}`, { signal });
    for (const item of page.data) yield item;
    left -= page.data.length;
    if (!page.has_more || !page.data.length) return;
    after = page.last_id ?? page.data.at(-1).id;
  }
}

/** Return all items of a list, up to `most`. */
export async function listAll(path, options) {
  const found = [];
  for await (const item of pages(path, options)) found.push(item);
  return found;
}

/** Whether asking again is of no use: the server refuses, and is neither broken nor too busy. */
export function isFinal(error) {
  return error instanceof ApiError && error.status < 500 && error.status !== 429;
}

/** Whether the key that is signed in may do this. */
export function may(scope) {
  return session.current?.scopes.includes(scope) ?? false;
}
