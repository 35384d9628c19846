// A bundle's zip, read without trusting anything that it says. Members are stored or deflated; nothing is unpacked beyond its limit.

import { Broken } from "./broken.js";

const MIB = 1024 ** 2;
const LIMITS = {
  "manifest.json": 65536,
  "leaves.jsonl": 4096 * MIB,
  "risk_table.jsonl": 4096 * MIB,
  "checkpoint.note": 65536,
  "heads.jsonl": 32 * MIB,
  "provenance.dsse.json": MIB,
};
const DOCUMENTS = ["bom.cdx.json", "compute.json", "critics.json", "environment.json", "evaluations.json", "lineage.json", "model_card.html", "policy.txt", "provenance.dsse.json"];
const MAX_RATIO = 200;
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let sum = byte;
  for (let bit = 0; bit < 8; bit += 1) sum = sum & 1 ? (sum >>> 1) ^ 0xedb88320 : sum >>> 1;
  return sum;
});
export const MAX_LINE_BYTES = 65535;

/** Return the members of a bundle, a Map from name to { read(), lines() }. Throws Broken where the file is no such zip. */
export async function openZip(file) {
  if (file.size < 22) throw new Broken("the file is too short to be a zip");
  const end = await view(file, file.size - 22, 22);
  if (end.getUint32(0, true) !== 0x06054b50 || end.getUint16(20, true) !== 0) throw new Broken("the file does not end as a zip without a comment does; it may be cut short");
  const [count, length, offset] = [end.getUint16(10, true), end.getUint32(12, true), end.getUint32(16, true)];
  if (count > 32 || length > 65536 || offset + length + 22 !== file.size) throw new Broken("the zip's directory is not where a bundle has it");
  const directory = await view(file, offset, length);
  const members = new Map();
  for (let at = 0, number = 0; number < count; number += 1) {
    if (at + 46 > length || directory.getUint32(at, true) !== 0x02014b50) throw new Broken("the zip's directory is damaged");
    const [nameLength, extra, comment] = [28, 30, 32].map((place) => directory.getUint16(at + place, true));
    const name = new TextDecoder().decode(new Uint8Array(directory.buffer, at + 46, nameLength));
    const member = {
      flags: directory.getUint16(at + 8, true),
      method: directory.getUint16(at + 10, true),
      crc: directory.getUint32(at + 16, true),
      packed: directory.getUint32(at + 20, true),
      size: directory.getUint32(at + 24, true),
      offset: directory.getUint32(at + 42, true),
    };
    checkMember(name, member);
    if (members.has(name)) throw new Broken("a member stands twice in the bundle");
    members.set(name, { read: () => readAll(file, name, member), lines: () => readLines(file, name, member), size: member.size });
    at += 46 + nameLength + extra + comment;
  }
  return members;
}

/** The names of members that are documents for people; the manifest has the digest of each. */
export function isDocument(name) {
  return DOCUMENTS.includes(name);
}

function checkMember(name, { flags, method, packed, size }) {
  const limit = LIMITS[name] ?? (isDocument(name) ? 32 * MIB : null);
  if (limit === null) throw new Broken(`the bundle has the unknown member “${name.slice(0, 80)}”`);
  if (flags & 1) throw new Broken(`${name} is encrypted`);
  if (method !== 0 && method !== 8) throw new Broken(`${name} is packed by the unknown method ${method}`);
  if (size > limit || size > MAX_RATIO * packed + 65536) throw new Broken(`${name} has ${size} bytes, more than is read`);
}

async function stream(file, name, { method, crc, packed, size, offset }) {
  const local = await view(file, offset, 30);
  if (local.getUint32(0, true) !== 0x04034b50) throw new Broken(`${name} is not where the directory says`);
  const nameLength = local.getUint16(26, true);
  const written = new TextDecoder().decode(await file.slice(offset + 30, offset + 30 + nameLength).arrayBuffer());
  if (written !== name) throw new Broken(`${name} has the name “${written.slice(0, 80)}” where it is`);
  const start = offset + 30 + nameLength + local.getUint16(28, true);
  if (start + packed > file.size) throw new Broken(`${name} is cut short`);
  const raw = file.slice(start, start + packed).stream();
  const whole = method === 8 ? raw.pipeThrough(new DecompressionStream("deflate-raw")) : raw;
  let seen = 0;
  let sum = 0xffffffff;
  return whole.pipeThrough(
    new TransformStream({
      transform(chunk, controller) {
        seen += chunk.length;
        if (seen > size) throw new Broken(`${name} unpacks to more than it says`);
        for (const byte of chunk) sum = CRC_TABLE[(sum ^ byte) & 0xff] ^ (sum >>> 8);
        controller.enqueue(chunk);
      },
      flush() {
        if (seen !== size || (sum ^ 0xffffffff) >>> 0 !== crc) throw new Broken(`${name} unpacks to other bytes than it says`);
      },
    }),
  );
}

async function readAll(file, name, member) {
  try {
    return new Uint8Array(await new Response(await stream(file, name, member)).arrayBuffer());
  } catch (error) {
    throw asBroken(error, name);
  }
}

/** Yield the lines of a member, each a Uint8Array without its newline. */
async function* readLines(file, name, member) {
  let left = new Uint8Array(0);
  let number = 0;
  try {
    const reader = (await stream(file, name, member)).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const bytes = new Uint8Array(left.length + value.length);
      bytes.set(left);
      bytes.set(value, left.length);
      let start = 0;
      for (let at = bytes.indexOf(10); at >= 0; at = bytes.indexOf(10, start)) {
        if (at - start > MAX_LINE_BYTES) throw new Broken(`${name}: line ${number} is too long`, { record: number });
        yield bytes.subarray(start, at);
        number += 1;
        start = at + 1;
      }
      left = bytes.slice(start);
      if (left.length > MAX_LINE_BYTES) throw new Broken(`${name}: line ${number} is too long`, { record: number });
    }
  } catch (error) {
    throw asBroken(error, name);
  }
  if (left.length) throw new Broken(`${name}: line ${number} does not end in a newline`, { record: number });
}

function asBroken(error, name) {
  return error instanceof Broken ? error : new Broken(`${name} cannot be unpacked: ${error.message}`);
}

async function view(file, start, length) {
  return new DataView(await file.slice(start, start + length).arrayBuffer());
}
