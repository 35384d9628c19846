// What the checks say when they fail.

/** A check failed; `record` is the place of the first bad line in its member, where one line is to blame. */
export class Broken extends Error {
  constructor(message, { record = null, line = null } = {}) {
    super(message);
    this.record = record;
    this.line = line;
  }
}
