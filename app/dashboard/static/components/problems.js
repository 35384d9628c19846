// What is wrong with a data file, line by line, with what to do about it.

import { h } from "../dom.js";
import { count } from "../format.js";
import { table } from "./parts.js";

const MOST_REPAIRED_BYTES = 64e6;

/** A table of the problems that a refusal or a report of a file names. */
export function problemTable(found) {
  const shown = found.problems ?? [];
  const kinds = Object.entries(found.problem_kinds ?? {}).map(([kind, times]) => h("li", {}, h("code", {}, kind), ` × ${count(times)}`));
  const all = found.problem_count ?? shown.length;
  return h(
    "div",
    { class: "stack" },
    h("p", {}, `${count(all)} ${all === 1 ? "problem" : "problems"}${found.complete === false ? " so far: reading stopped there" : ""}${shown.length < all ? `; the first ${count(shown.length)} are listed` : ""}.`),
    kinds.length > 1 && h("ul", { class: "kinds" }, kinds),
    table({
      caption: "Problems of the file",
      key: (row) => row.key,
      rows: shown.map((each, key) => ({ ...each, key })),
      columns: [
        { title: "Line", class: "number", cell: (row) => (row.line ? count(row.line) : "–") },
        { title: "Where", cell: (row) => h("code", {}, row.path) },
        { title: "Found", cell: (row) => row.found },
        { title: "Expected", cell: (row) => row.expected },
        { title: "For example", cell: (row) => (row.example ? h("code", { class: "small" }, row.example) : "–") },
      ],
    }),
  );
}

/** The lines that would have to go for a refused file to be good; null where not all of them are known. */
export function badLines(found, file) {
  const { problems = [], problem_count: all, complete } = found;
  const known = complete && problems.length === all && problems.every((each) => each.line > 0 && each.kind !== "json_array");
  return known && file.size <= MOST_REPAIRED_BYTES ? [...new Set(problems.map((each) => each.line))] : null;
}

/** Return a file without these lines, counted from 1. It is made here; nothing is sent. */
export async function withoutLines(file, lines) {
  const left = new Set(lines);
  const kept = (await file.text()).split("\n").filter((_, at) => !left.has(at + 1));
  return new File([kept.join("\n")], file.name, { type: file.type });
}
