"""What a job's fields are in a line of a terminal."""

from typing import Any

from app.cli.output import get_in, show_cell


def name_method(job: dict[str, Any]) -> str:
    """Return by which method a job is protected, and that it is not where that is so."""
    method = str(get_in(job, "safety", "method"))
    return method if get_in(job, "safety", "protected") else f"{method} (UNPROTECTED)"


def describe_gate(gate: dict[str, Any] | None) -> str | None:
    """Return what a job's gate came to, and each broken limit with what was found; None where it was not judged yet."""
    judged = gate if gate is not None and gate["verdict"] is not None else get_in(gate, "start")
    if judged is None:
        return None
    broken = [
        f"{each['limit']}: {'nothing was found' if each['found'] is None else show_cell(each['found'])}, the bound is"
        f" {show_cell(each['bound'])}"
        for each in judged["limits"]
        if each["broken"]
    ]
    return "; ".join((str(judged["verdict"]), *broken))


def describe_decisions(gate: dict[str, Any] | None) -> str | None:
    """Return who has released or rejected a held job, and why; None where nobody has."""
    said = [
        f"{each['decision']} by {each['by']} ({each['reason']})" for each in get_in(gate, "decisions") or ()
    ]
    return "; ".join(said) or None


def show_steps(job: dict[str, Any]) -> str | None:
    """Return how far a job is."""
    done, total = get_in(job, "training", "steps_completed"), get_in(job, "training", "total_steps")
    return None if total is None else f"{done} of {total}"


def show_share(number: float | None) -> str | None:
    """Return a number from 0 to 1; None where nothing was measured."""
    return None if number is None else f"{number:.3f}"


def name_critic(critic: dict[str, Any] | None) -> str | None:
    """Return who measured the risk, and how good it was on held-out data where that is known."""
    if critic is None:
        return None
    if critic.get("type") == "combined":
        return " + ".join(name_critic(part) or "?" for part in critic.get("critics", ()))
    auroc = get_in(critic, "quality", "auroc")
    name = str(critic.get("id") or critic.get("type"))
    return name if auroc is None else f"{name} (AUROC {auroc:.3f} held out)"
