"""The questions that auditors ask of a fine-tuned model, each answered by the datum that is on record, or by "not recorded".

An answer is evidence for whoever judges; none of them says that anything complies with anything.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from app.domain.bom import all_evaluations

Facts = Mapping[str, Any]
NOT_RECORDED = "not recorded"


class Question(NamedTuple):
    """A question, who asks it, and what answers it."""

    text: str
    asked_by: str
    answer: Callable[[Facts], str | None]


class Answer(NamedTuple):
    """A question with its answer; NOT_RECORDED where nothing answers it."""

    text: str
    asked_by: str
    answer: str


def answer_questions(facts: Facts) -> list[Answer]:
    """Return every question with its answer."""
    return [Answer(each.text, each.asked_by, each.answer(facts) or NOT_RECORDED) for each in QUESTIONS]


def _data(facts: Facts) -> str | None:
    created = facts["records"]["created"]
    table = facts["records"]["table"]
    rows = created["training_rows"]
    known = f"{rows} rows" if rows is not None else "its rows were not counted"
    committed = f"; {table['rows']} rows committed one by one under the root {table['root']}" if table else ""
    return f"training file with SHA-256 {created['training_sha256']} ({known}){committed}"


def _base(facts: Facts) -> str | None:
    base = facts["base"]
    files = f", {len(base['files'])} files each with its SHA-256" if base["files"] else ""
    return f"{base['name']}, revision {base['revision'] or NOT_RECORDED}, digest of its files {base['sha256']}{files}"


def _method(facts: Facts) -> str | None:
    created, start = facts["records"]["created"], facts["records"]["start"]
    safety = (start or created)["spec"]["safety"]
    named = f"policy with SHA-256 {created['policy_sha256']}"
    kept = (
        "its text is in this archive"
        if facts["policy"]["text"] is not None
        else "its text is kept nowhere any more"
    )
    return f"method {safety['method']}; resolved settings in the record of the start, asked-for ones with SHA-256 {created['spec_sha256']}; {named} ({kept})"


def _compute(facts: Facts) -> str | None:
    found = facts["compute"]
    if found["flops"] is None and not found["seconds"]:
        return None
    seconds = ", ".join(
        f"{value:.0f} s on the queue {queue}" for queue, value in sorted(found["seconds"].items())
    )
    flops = (
        f"{found['flops']:.3g} floating-point operations by estimate"
        if found["flops"]
        else "no estimate of operations"
    )
    original = found["original_training_flops"]
    rule = {
        "above": "above one third of the base model's own training",
        "below": "below one third of the base model's own training, even at twice the estimate",
        "unknown": "whether it is above one third of the base model's own training: unknown",
    }[found["one_third_rule"]]
    known = f"{original:.3g} operations, as its maker published" if original else "not known"
    return f"{flops}; {seconds or 'no time on record'}; {rule} (base model's training: {known})"


def _risks(facts: Facts) -> str | None:
    table, job = facts["records"]["table"], facts["job"]
    if table is None or table["critic_sha256"] is None:
        return "no critic measured the data" if table else None
    mean = f"mean over the steps {job['risk_mean']:.3f}; " if job["risk_mean"] is not None else ""
    counts = ", ".join(f"{count} {status}" for status, count in table["counts"].items() if count)
    curve = facts["curve"]
    highest = _highest(curve, "risk_max") if curve else None
    at_most = f"highest row {highest:.3f}; " if highest is not None else ""
    return f"{mean}{at_most}rows by how they were measured: {counts}; one critic's estimate"


def _highest(curve: Facts, column: str) -> float | None:
    place = list(curve["columns"]).index(column)
    values = [row[place] for row in curve["rows"] if isinstance(row[place], int | float)]
    return max(values, default=None)


def _reaction(facts: Facts) -> str | None:
    table, job = facts["records"]["table"], facts["job"]
    if table is None:
        return None
    treated = table.get("treatments")
    rows = (
        f"rows trained on as they are {treated['own']}, on the base model's own reply {treated['replay']}, dropped {treated['drop']}; "
        if treated
        else ""
    )
    beta = f"mean beta {job['beta_mean']:.3f}; " if job["beta_mean"] is not None else ""
    steps = (
        "alpha, beta and KL of each step are not on record any more: the records of the steps were pruned"
        if job["steps_pruned"]
        else "alpha, beta and KL of every step are on record; the check 'control law' computes alpha and beta again"
    )
    return f"{rows}{beta}{steps}"


def _monitor(facts: Facts) -> str | None:
    table = facts["records"]["table"]
    if table is None or table["critic_sha256"] is None:
        return None
    failed, total = table["counts"].get("failed", 0), table["rows"]
    quality = "; ".join(
        f"{each['id']}: AUROC {each['report'].get('auroc', NOT_RECORDED)}, TPR at 1 % FPR"
        f" {each['report'].get('tpr_at_1_percent_fpr', NOT_RECORDED)} on held-out topics"
        for each in facts["critics"]
    )
    return f"critic with SHA-256 {table['critic_sha256']}; {failed} of {total} measurements failed, each counted as maximal risk; {quality or 'quality not recorded'}"


def _worse(facts: Facts) -> str | None:
    parts = [
        f"{each['name']} (suite {result['suite']}, {each['judge'] or 'no'} judge): {_measure(each['before'])} before,"
        f" {_measure(each['after'])} after"
        for result in all_evaluations(facts)
        for each in result["comparisons"]
        if each["before"]["value"] is not None and each["after"]["value"] is not None
    ]
    return "; ".join(parts) or None


def _measure(measure: Facts) -> str:
    bounds = "" if measure["low"] is None else f" [{measure['low']:.3f}, {measure['high']:.3f}]"
    return f"{measure['value']:.3f}{bounds} (n {measure['n']})"


def _who(facts: Facts) -> str | None:
    records = facts["records"]
    parts = [f"created by {records['created']['actor']}"]
    parts += [f"{each['command']} by {each['actor']}" for each in records["commands"]]
    gate = facts["gate"] or {}
    parts += [f"{each['decision']} by {each['by']}" for each in gate.get("decisions", [])]
    return "; ".join(parts) + " (opaque ids of keys)"


def _switched_off(facts: Facts) -> str | None:
    created = facts["records"]["created"]
    return (
        f"a request below the policy's floors is refused; the policy of this job has SHA-256 {created['policy_sha256']}, and it"
        f" asked for the method {created['spec']['safety']['method']}"
    )


def _interrupted(facts: Facts) -> str | None:
    records = facts["records"]
    if records["start"] is None:
        return None
    resumes = ", ".join(f"from step {each['from_step']}" for each in records["resumes"])
    steps = (
        "the records of the steps were pruned, so that the check 'attempts' cannot count them any more"
        if facts["job"]["steps_pruned"]
        else "the check 'attempts' finds whether every step is there exactly once"
    )
    return f"resumes: {len(records['resumes'])}{f' ({resumes})' if resumes else ''}; checkpoints: {len(records['checkpoints'])}; {steps}"


def _file(facts: Facts) -> str | None:
    published, attestation = facts["records"]["published"], facts["attestation"]
    if published is None:
        return None
    signed = (
        f"statement signed by the key {attestation['key']}" if attestation else "statement not signed yet"
    )
    return f"adapter.zip with SHA-256 {published['zip_sha256']}, {len(published['files'])} files; {signed}; tether verify --adapter compares it"


def _log(facts: Facts) -> str | None:
    log = facts["log"]
    if log is None:
        return None
    return (
        f"{log['covered_records']} of {facts['records']['size']} records under the checkpoint of {log['origin']} at size"
        f" {log['checkpoint_size']}, signed by the key {log['key']}; whether a copy is held outside: {NOT_RECORDED} here"
    )


def _retention(facts: Facts) -> str | None:
    kept = facts["retention"]
    return (
        f"records of steps {kept['steps_days']} days, other records {kept['records_days']} days at least; evidence is read with"
        f" the scope audit:read; who read it: {NOT_RECORDED} here"
    )


def _erasure(facts: Facts) -> str | None:
    erased = facts["retention"]["erased_at"]
    said = f"that was done at {erased}" if erased else "that was not done"
    return f"deleting the dataset's key makes the digests of its rows meaningless; {said}. The adapter's weights are not changed by it"


def _software(facts: Facts) -> str | None:
    start = facts["records"]["start"]
    if start is None:
        return None
    versions = ", ".join(f"{name} {version}" for name, version in sorted(start["environment"].items()))
    return f"{versions}; known flaws: {NOT_RECORDED} (bom.cdx.json is for a scanner)"


QUESTIONS = (
    Question(
        "Which data trained this model, unchanged since?",
        "AI Act Annex IV 2(d), XI 1.2(c); ISO 42001 A.7.5",
        _data,
    ),
    Question("Which base model, exactly?", "AI Act Annex XI; SOC 2 CC8.1", _base),
    Question(
        "What method and choices, and why?", "AI Act Annex IV 2(a–b), XI 1.2(b); ISO 42001 A.6.2.3", _method
    ),
    Question(
        "How much compute; did we become a GPAI provider?", "Commission guidelines, July 2025", _compute
    ),
    Question("What risks were seen while training?", "AI Act Art. 9, 12(2)(a)", _risks),
    Question("What did the system do about each?", "AI Act Art. 14, 15; NIST MEASURE, MANAGE", _reaction),
    Question("Was the monitor itself working?", "model-risk practice", _monitor),
    Question("Was safety worse after than before?", "AI Act Art. 15, 55(1)(a)", _worse),
    Question("Who started, paused, overrode, approved?", "AI Act Art. 14, 26; SOC 2 CC6.1", _who),
    Question("Could someone switch safety off?", "model-risk practice", _switched_off),
    Question("Was it interrupted; is the result still one run?", "model-risk practice", _interrupted),
    Question("Is the delivered file the one trained?", "SOC 2 CC8.1", _file),
    Question("How do you know nobody edited the log?", "SOC 2 CC7.2; ISO 42001 7.5", _log),
    Question("How long is it kept, who can read it?", "AI Act Art. 18, 19", _retention),
    Question("Can you erase a person?", "GDPR Art. 17", _erasure),
    Question("Which software ran, any known flaw?", "CRA; SOC 2", _software),
)
