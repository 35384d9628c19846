// The checks of a bundle that need nothing but the bundle and a public key. They carry the names and numbers that
// `tether verify` gives them, which makes the others, too.

import { Broken } from "./broken.js";
import { canonicalBytes, parseCanonical } from "./canonical.js";
import { fromHex, hex, leafHash, sha256, Tree, verifyInclusion } from "./merkle.js";
import { checkSignatures, parseCheckpoint } from "./note.js";
import { isDocument, openZip } from "./zip.js";

const [UNSIGNED, SIGNED, PRUNED] = ["tether.bundle/1", "tether.bundle/2", "tether.bundle/3"];
const NO_LEAF = "0".repeat(64);
const EVERY = 500;

export const CHECKS = [
  ["bundle", "The file is a bundle, and its documents are the ones that it lists"],
  ["records", "Every record is canonical JSON"],
  ["sequence", "Every record is in its place and of this job"],
  ["chain", "Every record names the hash of the one before it"],
  ["root", "The Merkle tree over the records has the root that the bundle claims"],
  ["risk table", "The risk of every row is under the root that the record committed to"],
  ["retention", "No record is missing but those that the log says were pruned"],
  ["heads", "The installation's log knew these records, and proves it"],
  ["signature", "The log's checkpoint is signed by a key that you trust"],
  ["adapter", "The adapter is the one on record"],
  ["end", "The job has ended, and its end is under the signature"],
];

/**
 * Check a bundle (a Blob). `trust` is what parseTrust returns, or null; `adapter` a Blob or null; `tell(records)` is called as it
 * goes. Returns { checks: [{ name, title, outcome, detail }], facts, bad }: outcome is ok, failed, not checked or not reached;
 * `bad` is the first bad line, { member, record, text }.
 */
export async function checkBundle(file, { trust = null, adapter = null, tell = () => {} } = {}) {
  const found = new Map();
  const facts = {};
  let bad = null;
  const run = async (name, check) => {
    try {
      found.set(name, await check());
      return true;
    } catch (stumbled) {
      // What no check foresaw is a bundle that nobody who makes them would write.
      const error = stumbled instanceof Broken ? stumbled : new Broken(`it cannot be read: ${stumbled.message}`);
      found.set(name, { outcome: "failed", detail: error.message });
      bad ??= { member: error.member ?? "leaves.jsonl", record: error.record, text: error.line };
      return false;
    }
  };
  const job = { tree: new Tree(), previous: NO_LEAF, pruned: new Tree(), trust, adapter, roots: new Map(), end: null, published: null, riskRoot: null };
  if (await run("bundle", () => openBundle(file, job))) {
    facts.job = job.manifest.job;
    facts.claimed = job.manifest.size;
    await readHeads(job, run);
    const failed = await readRecords(job, tell);
    for (const name of ["records", "sequence", "chain"]) await run(name, () => outcomeOf(name, failed, job));
    facts.records = job.tree.size;
    if (!failed) {
      facts.root = hex(await job.tree.root());
      facts.state = job.end?.state ?? "not ended";
      await run("root", () => checkRoot(job));
      await run("risk table", () => checkRiskTable(job));
      await run("retention", () => checkPruning(job));
      if (found.get("heads")?.outcome !== "failed") await run("heads", () => checkHeads(job));
      await run("signature", () => checkSignature(job));
      await run("adapter", () => checkAdapter(job));
      await run("end", () => checkEnd(job));
    }
  }
  const checks = CHECKS.map(([name, title]) => ({ name, title, ...(found.get(name) ?? { outcome: "not reached", detail: "an earlier check failed" }) }));
  return { checks, facts, bad };
}

const ok = (detail) => ({ outcome: "ok", detail });
const notChecked = (detail) => ({ outcome: "not checked", detail });

async function openBundle(file, job) {
  job.members = await openZip(file);
  for (const name of ["manifest.json", "leaves.jsonl"]) if (!job.members.has(name)) throw new Broken(`the bundle has no ${name}`);
  const manifest = await job.members.get("manifest.json").read();
  job.manifest = attempt("manifest.json", null, () => parseCanonical(manifest));
  const { format, size, root, head, documents = {} } = job.manifest;
  if (![UNSIGNED, SIGNED, PRUNED].includes(format)) throw new Broken(`the format is ${String(format).slice(0, 80)}, which this page does not read`);
  if (typeof job.manifest.job !== "string" || !Number.isSafeInteger(size) || typeof root !== "string" || typeof head !== "string") throw new Broken("the manifest lacks job, size, root or head");
  for (const name of ["checkpoint.note", "heads.jsonl"]) {
    if (job.members.has(name) !== (format !== UNSIGNED)) throw new Broken(`a bundle of the format ${format} with${job.members.has(name) ? "" : "out"} ${name}`);
  }
  const there = [...job.members.keys()].filter(isDocument).sort();
  if (there.join() !== Object.keys(documents).sort().join()) throw new Broken("the manifest lists other documents than the bundle has");
  for (const name of there) {
    const digest = hex(await sha256(await job.members.get(name).read()));
    if (digest !== documents[name]) throw new Broken(`the SHA-256 of ${name} is ${digest}; the manifest says ${documents[name]}`);
  }
  return ok(`${format}, ${there.length} documents`);
}

async function readHeads(job, run) {
  job.heads = [];
  if (job.manifest.format === UNSIGNED) return;
  await run("heads", async () => {
    const note = await job.members.get("checkpoint.note").read();
    job.checkpoint = attempt("checkpoint.note", null, () => parseCheckpoint(note));
    const lines = [];
    for await (const line of job.members.get("heads.jsonl").lines()) lines.push(line.slice());
    const pruning = job.manifest.format === PRUNED ? lines.pop() : null;
    if (pruning === undefined) throw new Broken("a pruned bundle without the line that says what was pruned");
    for (const [at, line] of lines.entries()) {
      const head = attempt("heads.jsonl", at, () => parseCanonical(line), line);
      const before = job.heads.at(-1);
      const { leaf, index, proof } = head;
      const blame = { record: at, line: decode(line), member: "heads.jsonl" };
      if (leaf?.t !== "tether.log.head/1" || leaf.job !== job.manifest.job) throw broken("it is no head of this job", blame);
      if (leaf.previous !== (before?.index ?? null)) throw broken("it names another head before it than the one that is there", blame);
      if (before && !(before.index < index && before.leaf.size < leaf.size)) throw broken("it is not later than the head before it", blame);
      await checkProof(job, leaf, index, proof, blame);
      job.heads.push(head);
    }
    if (!job.heads.length) throw new Broken("the checkpoint is there, and no head of this job under it");
    if (pruning) job.pruning = attempt("heads.jsonl", lines.length, () => parseCanonical(pruning), pruning);
    // What they say of the records is compared once those are read; then this is replaced. A failure stays.
    return notChecked("the records were not read to their end");
  });
}

async function checkProof(job, leaf, index, proof, blame) {
  const hashes = attempt("heads.jsonl", blame.record, () => proof.map(fromHex));
  const under = await verifyInclusion(await leafHash(canonicalBytes(leaf)), index, job.checkpoint.size, hashes, job.checkpoint.root);
  if (!under) throw broken("its proof does not lead to the root of the checkpoint", blame);
}

/** Read every record, and return the first failure as { name, error }, or null. */
async function readRecords(job, tell) {
  const sizes = new Set(job.heads.map((head) => head.leaf.size));
  try {
    for await (const line of job.members.get("leaves.jsonl").lines()) {
      await readRecord(job, line);
      if (sizes.has(job.tree.size)) job.roots.set(job.tree.size, hex(await job.tree.root()));
      if (job.tree.size % EVERY === 0) tell(job.tree.size);
    }
  } catch (error) {
    const found = error instanceof Broken ? error : new Broken(`record ${job.tree.size} cannot be read: ${error.message}`, { record: job.tree.size });
    return { name: error.check ?? "records", error: found };
  }
  tell(job.tree.size);
  return null;
}

async function readRecord(job, line) {
  const seq = job.tree.size;
  const blame = { record: seq, line: decode(line) };
  let record;
  try {
    record = parseCanonical(line);
  } catch (error) {
    throw broken(`record ${seq} is ${error.message}`, { ...blame, check: "records" });
  }
  if (job.pruning && isPruned(record)) {
    const digest = fromHex(record.pruned);
    await job.pruned.append(await leafHash(join8(seq, digest)));
    job.previous = record.pruned;
    await job.tree.append(digest);
    return;
  }
  if (typeof record?.t !== "string" || !record.t.startsWith("tether.") || record.body === null || typeof record.body !== "object") throw broken(`record ${seq} is of no known form`, { ...blame, check: "records" });
  if (record.seq !== seq) throw broken(`record ${seq}: its seq is ${record.seq}`, { ...blame, check: "sequence" });
  if (record.job !== job.manifest.job) throw broken(`record ${seq} belongs to the job ${record.job}`, { ...blame, check: "sequence" });
  if (record.prev !== job.previous) throw broken(`record ${seq} names ${String(record.prev).slice(0, 12)}… as its predecessor, which is ${job.previous.slice(0, 12)}…`, { ...blame, check: "chain" });
  if (record.t.startsWith("tether.job.end/")) job.end = { seq, ...record.body };
  if (record.t.startsWith("tether.adapter.published/")) job.published = { seq, ...record.body };
  if (record.t.startsWith("tether.risk.table/")) job.riskRoot = record.body.root;
  const digest = await leafHash(line);
  job.previous = hex(digest);
  await job.tree.append(digest);
}

function outcomeOf(name, failed, job) {
  const order = ["records", "sequence", "chain"];
  if (failed?.name === name) throw failed.error;
  if (failed && order.indexOf(name) > order.indexOf(failed.name)) return { outcome: "not reached", detail: "an earlier check failed" };
  const upTo = failed ? `up to record ${job.tree.size}` : `all ${job.tree.size}`;
  return ok(job.pruned.size ? `${upTo}; ${job.pruned.size} of them were pruned` : upTo);
}

async function checkRoot(job) {
  const found = { size: job.tree.size, root: hex(await job.tree.root()), head: job.previous };
  for (const [name, value] of Object.entries(found)) {
    if (job.manifest[name] !== value) throw new Broken(`the manifest's ${name} is ${job.manifest[name]}; the records give ${value}`);
  }
  return ok(`${found.root} over ${found.size} records`);
}

async function checkRiskTable(job) {
  const member = job.members.get("risk_table.jsonl");
  if (!member) {
    if (job.riskRoot) throw new Broken("the record has a risk table, and the bundle does not");
    return notChecked("the job ended before its risk was measured");
  }
  if (!job.riskRoot) return notChecked("the record of the risk table was pruned");
  const tree = new Tree();
  for await (const line of member.lines()) await tree.append(await leafHash(line));
  const root = hex(await tree.root());
  if (root !== job.riskRoot) throw new Broken(`the risk table's root is ${root}; the record committed to ${job.riskRoot}`);
  return ok(`${tree.size} rows`);
}

async function checkPruning(job) {
  if (!job.pruning) return ok("no record is missing");
  const { leaf, index, proof, pruning } = job.pruning;
  const blame = { record: job.heads.length, member: "heads.jsonl" };
  await checkProof(job, leaf, index, proof, blame);
  const digest = hex(await sha256(canonicalBytes(pruning)));
  if (leaf.event !== "job.pruned" || leaf.subject !== job.manifest.job || leaf.sha256 !== digest) throw broken("the log's event is of another pruning", blame);
  const root = hex(await job.pruned.root());
  if (pruning.job !== job.manifest.job || pruning.records !== job.pruned.size || pruning.root !== root) throw new Broken(`${job.pruned.size} records are missing, and not exactly those that the log says were pruned (${pruning.records})`);
  return ok(`${pruning.records} records are missing, exactly those that the signed log says were pruned (${pruning.scope})`);
}

function checkHeads(job) {
  if (!job.checkpoint) return notChecked("the bundle holds nothing of the installation's log");
  for (const [at, { leaf }] of job.heads.entries()) {
    const root = job.roots.get(leaf.size);
    if (root === undefined) throw new Broken(`the log knows ${leaf.size} records of this job; the bundle has ${job.tree.size}`);
    if (root !== leaf.root) {
      const same = at ? job.heads[at - 1].leaf.size : 0;
      throw new Broken(`the log has the root ${leaf.root} over the first ${leaf.size} records; these give ${root}: one of the records ${same} to ${leaf.size - 1} is not as it was signed`);
    }
  }
  const left = job.tree.size - job.heads.at(-1).leaf.size;
  return ok(`${job.heads.length} heads in the log ${job.checkpoint.origin} at size ${job.checkpoint.size}; ${left ? `all but the last ${left} records` : "every record"} under its root`);
}

async function checkSignature(job) {
  if (!job.checkpoint) {
    if (job.trust) throw new Broken("you asked for a signed checkpoint; the bundle has none");
    return notChecked("this form is unsigned: whoever made the bundle may have made all of it");
  }
  if (!job.trust) return notChecked("no trust policy was given that says whose signature counts");
  try {
    const keys = await checkSignatures(job.checkpoint, job.trust);
    const fork = job.checkpoint.origin.includes("/fork-") ? "; this log is a FORK of another" : "";
    return ok(`signed by ${keys.map(({ name, id }) => `${name}+${id}`).join(", ")}${fork}`);
  } catch (error) {
    if (error.name === "NotSupportedError") return notChecked("this browser has no Ed25519; check it with tether verify");
    throw new Broken(`the checkpoint: ${error.message}`);
  }
}

async function checkAdapter(job) {
  if (!job.adapter) return notChecked("no adapter was given");
  if (!job.published) throw new Broken("the record has no published adapter");
  if (job.checkpoint && job.published.seq >= job.heads.at(-1).leaf.size) return notChecked("the record that names the adapter is not under the signed checkpoint");
  const digest = hex(await sha256(new Uint8Array(await job.adapter.arrayBuffer())));
  if (digest !== job.published.zip_sha256) throw new Broken(`its SHA-256 is ${digest}; the record says ${job.published.zip_sha256}`);
  return ok(digest);
}

function checkEnd(job) {
  if (!job.end) return notChecked("the job has not ended, or its record was cut short at a record's end");
  const signed = job.heads.at(-1)?.leaf.size ?? 0;
  if (job.trust && signed < job.tree.size) throw new Broken(`the last ${job.tree.size - signed} records, and so its end, are not under the checkpoint`);
  return ok(`${job.end.state} after ${job.end.steps} steps`);
}

function isPruned(record) {
  return record !== null && typeof record === "object" && Object.keys(record).join() === "pruned";
}

function join8(seq, digest) {
  const bytes = new Uint8Array(8 + digest.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(seq));
  bytes.set(digest, 8);
  return bytes;
}

function attempt(member, record, work, line = null) {
  try {
    return work();
  } catch (error) {
    throw broken(`${member}: ${error.message}`, { record, line: line && decode(line), member });
  }
}

function broken(message, { record, line, member, check }) {
  return Object.assign(new Broken(message, { record, line }), { member, check });
}

function decode(bytes) {
  return new TextDecoder().decode(bytes);
}
