// The Merkle tree of RFC 6962 over SHA-256, by WebCrypto. Hashes are Uint8Arrays of 32 bytes.

/** SHA-256 over the bytes of all parts. */
export async function sha256(...parts) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", join(parts)));
}

/** The hash of a leaf's bytes: SHA-256(00 ‖ leaf). */
export function leafHash(leaf) {
  return sha256(Uint8Array.of(0), leaf);
}

/** The hash of the node over two subtrees: SHA-256(01 ‖ left ‖ right). */
export function nodeHash(left, right) {
  return sha256(Uint8Array.of(1), left, right);
}

/** A tree that grows by one leaf's hash at a time and keeps only the roots of its full subtrees. */
export class Tree {
  constructor() {
    this.size = 0;
    this.subtrees = [];
  }

  /** Add the hash of the next leaf. */
  async append(leaf) {
    let carry = leaf;
    // Each trailing one of the size in binary is a full subtree that the new leaf completes.
    for (let size = this.size; size % 2 === 1; size = Math.floor(size / 2)) {
      carry = await nodeHash(this.subtrees.pop(), carry);
    }
    this.subtrees.push(carry);
    this.size += 1;
  }

  /** The root over the leaves so far. */
  async root() {
    if (!this.subtrees.length) return sha256();
    let result = this.subtrees.at(-1);
    for (const subtree of this.subtrees.slice(0, -1).reverse()) result = await nodeHash(subtree, result);
    return result;
  }
}

/** Whether `proof` shows that the leaf hash is at `index` in the tree of this size and root. */
export async function verifyInclusion(leaf, index, size, proof, root) {
  if (!(index >= 0 && index < size) || [leaf, root, ...proof].some((each) => each.length !== 32)) return false;
  let [node, last, result] = [index, size - 1, leaf];
  const up = () => ([node, last] = [Math.floor(node / 2), Math.floor(last / 2)]);
  for (const sibling of proof) {
    if (last === 0) return false;
    if (node % 2 === 1 || node === last) {
      result = await nodeHash(sibling, result);
      while (node % 2 === 0 && node > 0) up();
    } else {
      result = await nodeHash(result, sibling);
    }
    up();
  }
  return last === 0 && hex(result) === hex(root);
}

/** Bytes as hex digits. */
export function hex(bytes) {
  let text = "";
  for (const byte of bytes) text += byte.toString(16).padStart(2, "0");
  return text;
}

/** Hex digits as bytes. Throws an Error for any other text. */
export function fromHex(text) {
  if (typeof text !== "string" || !/^([0-9a-f]{2})*$/.test(text)) throw new Error("not lower-case hex digits");
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

/** Base64 as bytes. Throws an Error unless it is written exactly as it would be encoded. */
export function fromBase64(text) {
  let raw;
  try {
    raw = atob(text);
  } catch {
    throw new Error("not Base64");
  }
  if (btoa(raw) !== text) throw new Error("not Base64 as it is encoded");
  return Uint8Array.from(raw, (character) => character.charCodeAt(0));
}

function join(parts) {
  if (parts.length === 1) return parts[0];
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
