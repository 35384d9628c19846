// Canonical JSON (RFC 8785): the only form in which a record counts. JavaScript writes numbers and texts as it asks for.

const MAX_DEPTH = 64;
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

/** Return the value of canonical bytes. Throws an Error for any other bytes. */
export function parseCanonical(bytes) {
  let text;
  let value;
  try {
    text = decoder.decode(bytes);
  } catch {
    throw new Error("not UTF-8");
  }
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`not JSON: ${error.message}`);
  }
  if (write(value, 0) !== text) throw new Error("not in canonical form (RFC 8785)");
  return value;
}

/** Return the canonical bytes of a value. */
export function canonicalBytes(value) {
  return encoder.encode(write(value, 0));
}

function write(value, depth) {
  if (depth > MAX_DEPTH) throw new Error(`nested deeper than ${MAX_DEPTH}`);
  if (Array.isArray(value)) return `[${value.map((each) => write(each, depth + 1)).join(",")}]`;
  if (value !== null && typeof value === "object") {
    const fields = Object.keys(value).sort();
    return `{${fields.map((name) => `${text(name)}:${write(value[name], depth + 1)}`).join(",")}}`;
  }
  if (typeof value === "string") return text(value);
  // Digits alone beyond 2^53 − 1 are an integer that not every reader holds exactly.
  if (typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && Math.abs(value) < 1e21) {
    throw new Error("an integer beyond ±(2^53 − 1)");
  }
  return JSON.stringify(value);
}

function text(value) {
  if (!value.isWellFormed()) throw new Error("a text holds half of a surrogate pair");
  return JSON.stringify(value);
}
