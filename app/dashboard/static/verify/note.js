// Signed notes and checkpoints (C2SP signed-note, tlog-checkpoint), and whose signatures are trusted.

import { fromBase64, hex, sha256 } from "./merkle.js";

const encoder = new TextEncoder();

/**
 * Read a trust policy as `tether log trust` prints it: [[logs]] with an origin and keys. Returns a Map from origin to keys, each
 * { name, id, bytes }. Throws an Error that says what is wrong.
 */
export async function parseTrust(text) {
  const trusted = new Map();
  const plain = text.replace(/^\s*#.*$/gm, "");
  const tables = plain.split(/^\s*\[\[logs\]\]\s*$/m);
  if (tables.length < 2 || tables[0].trim()) throw new Error("This is no trust policy: it begins with [[logs]]. `tether log trust` prints one.");
  for (const table of tables.slice(1)) {
    const found = /^\s*origin\s*=\s*"([^"\\]+)"\s*keys\s*=\s*\[\s*((?:"[^"\\]+"\s*,?\s*)+)\]\s*$/.exec(table);
    if (!found) throw new Error("Each [[logs]] has an origin and a list of keys, as `tether log trust` prints them.");
    if (trusted.has(found[1])) throw new Error(`The log ${found[1]} stands there twice.`);
    trusted.set(found[1], await Promise.all([...found[2].matchAll(/"([^"]+)"/g)].map(([, key]) => parseKey(key))));
  }
  return trusted;
}

async function parseKey(text) {
  const [name, id, encoded, ...more] = splitKey(text);
  const raw = fromBase64(encoded ?? "");
  if (!name || more.length || raw.length !== 33 || raw[0] !== 1) throw new Error(`“${text.slice(0, 80)}” is not an Ed25519 key of the form name+id+key.`);
  const expected = hex((await sha256(encoder.encode(`${name}\n`), raw)).slice(0, 4));
  if (id !== expected) throw new Error(`The id of the key ${name} is ${id}; its name and bytes give ${expected}.`);
  return { name, id, bytes: raw.slice(1) };
}

function splitKey(text) {
  const [, name, id, encoded] = /^([^+]+)\+([^+]+)\+(.+)$/.exec(text) ?? [];
  return [name, id, encoded];
}

/** Return { text, origin, size, root, signatures } of a signed checkpoint, none of them verified. Throws an Error for anything else. */
export function parseCheckpoint(bytes) {
  const whole = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  const at = whole.lastIndexOf("\n\n");
  if (at < 0 || !whole.endsWith("\n")) throw new Error("no empty line divides the text from its signatures");
  const text = whole.slice(0, at + 1);
  const [origin, size, root, ...rest] = text.split("\n");
  if (!origin || !/^(0|[1-9][0-9]{0,14})$/.test(size) || rest.length === 0) throw new Error("a checkpoint is three lines: origin, size, root");
  const signatures = whole
    .slice(at + 2, -1)
    .split("\n")
    .map((line) => {
      const found = /^— (\S+) (\S+)$/.exec(line);
      if (!found) throw new Error("a line under the checkpoint is no signature");
      const raw = fromBase64(found[2]);
      return { name: found[1], id: hex(raw.slice(0, 4)), bytes: raw.slice(4) };
    });
  return { text, origin, size: Number(size), root: fromBase64(root), signatures };
}

/**
 * Return the keys of the policy that signed a checkpoint: at least one. Throws an Error where none did, or where a signature under the
 * id of one of them is not one.
 */
export async function checkSignatures(checkpoint, trust) {
  const keys = trust.get(checkpoint.origin);
  if (!keys) throw new Error(`it is of the log ${checkpoint.origin}, which the trust policy does not name`);
  const signed = [];
  for (const { name, id, bytes } of checkpoint.signatures) {
    const key = keys.find((each) => each.name === name && each.id === id);
    if (!key) continue;
    const imported = await crypto.subtle.importKey("raw", key.bytes, { name: "Ed25519" }, false, ["verify"]);
    if (!(await crypto.subtle.verify("Ed25519", imported, bytes, encoder.encode(checkpoint.text)))) {
      throw new Error(`the signature of ${name}+${id} is not one over this text`);
    }
    signed.push(key);
  }
  if (!signed.length) throw new Error("it is signed by none of the keys that are trusted");
  return signed;
}
