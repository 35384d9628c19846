// Keeping a screen up to date: a stream where the API has one, otherwise asking again; never while nobody looks.

import { isFinal, noteConnection } from "./api.js";

const FIRST_WAIT_S = 2;
const LONGEST_WAIT_S = 30;

/** Tells by `change` that what is seen has become old, or is up to date again. */
export const freshness = new EventTarget();
const stale = new Map();

/** Since when something that is seen has not been updated, in seconds, or null while all of it is. */
export function staleSince() {
  return stale.size ? Math.min(...stale.values()) : null;
}

/** Say that what `source` shows is as old as `since`, or, with null, that it is not old or not seen any more. */
function noteAge(source, since) {
  if (since === null ? !stale.delete(source) : stale.has(source)) return;
  if (since !== null) stale.set(source, since);
  freshness.dispatchEvent(new Event("change"));
}

/**
 * Call `ask` now and every `everyS` seconds until `signal` ends it; a hidden page waits until it is seen again. While `ask`
 * fails it is called less and less often, and the frame says since when nothing was updated.
 */
export async function poll(ask, { everyS, signal }) {
  const source = {};
  let waitS = everyS;
  let updated = Date.now() / 1000;
  signal.addEventListener("abort", () => noteAge(source, null), { once: true });
  while (!signal.aborted) {
    try {
      await ask();
      waitS = everyS;
      updated = Date.now() / 1000;
      noteAge(source, null);
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) return;
      waitS = Math.min(waitS * 2, LONGEST_WAIT_S);
      noteAge(source, updated);
    }
    await sleep(waitS, signal);
    await visible(signal);
  }
}

/**
 * Poll `ask` until `isDone` is true of what it returns, and return that. Raises a refusal that asking again would not change,
 * and AbortError where `signal` ends it.
 */
export async function pollUntil(ask, isDone, { everyS, signal }) {
  const ended = new AbortController();
  let found = null;
  let refusal = null;
  const look = async () => {
    try {
      found = await ask();
    } catch (error) {
      // What is asked for was deleted, say, and will never be there.
      if (isFinal(error)) (ended.abort(), (refusal = error));
      throw error;
    }
    if (isDone(found)) ended.abort();
  };
  await poll(look, { everyS, signal: AbortSignal.any([signal, ended.signal]) });
  signal.throwIfAborted();
  if (refusal) throw refusal;
  return found;
}

/**
 * Follow a stream of server-sent events from the one after the id `after`, until `signal` or the returned function ends it.
 * `handlers` has a function for each kind of event, which is given the parsed data. A browser connects again by itself, but
 * gives up at a refusal: then `refresh` is awaited, which hears why, and the stream is opened again after its last event.
 */
export function follow(path, handlers, { signal, after = null, refresh }) {
  if (signal.aborted) return () => {};
  const ended = new AbortController();
  let source = null;
  let last = after;
  let lost = null;
  let waitS = FIRST_WAIT_S;

  function open() {
    source = new EventSource(last ? `${path}?after=${encodeURIComponent(last)}` : path);
    for (const [kind, handle] of Object.entries(handlers)) {
      source.addEventListener(kind, (event) => {
        last = event.lastEventId || last;
        handle(JSON.parse(event.data));
      });
    }
    source.addEventListener("open", () => {
      waitS = FIRST_WAIT_S;
      lost = null;
      noteConnection(true);
      noteAge(ended, null);
    });
    source.addEventListener("error", () => {
      lost ??= Date.now() / 1000;
      if (source.readyState === EventSource.CLOSED) openAgain();
      else noteConnection(false);
    });
  }

  async function openAgain() {
    // A refusal is an answer, so that the server is not called unreachable.
    noteAge(ended, lost);
    await sleep(waitS, ended.signal);
    await visible(ended.signal);
    waitS = Math.min(waitS * 2, LONGEST_WAIT_S);
    if (!ended.signal.aborted) await refresh();
    if (!ended.signal.aborted) open();
  }

  function close() {
    ended.abort();
    source.close();
    noteAge(ended, null);
  }

  open();
  signal.addEventListener("abort", close, { once: true });
  return close;
}

/** Return a function that runs `work` at most once in `everyMs`, the last time with what was newest. */
export function throttle(work, everyMs, signal) {
  let timer = null;
  let last = -Infinity;
  signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
  return () => {
    if (timer !== null || signal.aborted) return;
    timer = setTimeout(
      () => {
        timer = null;
        last = performance.now();
        work();
      },
      Math.max(0, last + everyMs - performance.now()),
    );
  };
}

function sleep(seconds, signal) {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    // A listener that stayed would be one more for each round of a page that is open for days.
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, seconds * 1000);
    signal.addEventListener("abort", done);
  });
}

function visible(signal) {
  if (!document.hidden || signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const done = () => {
      document.removeEventListener("visibilitychange", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    document.addEventListener("visibilitychange", done);
    signal.addEventListener("abort", done);
  });
}
