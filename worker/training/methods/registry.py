"""The methods by their names on the wire. A new one is a file and a line here."""

from app.domain.safety_spec import AnySafety
from app.domain.step_plan import Layout
from worker.training.methods.antidote import Antidote
from worker.training.methods.constrained_sft import ConstrainedSFT
from worker.training.methods.lisa import Lisa
from worker.training.methods.plain import Method
from worker.training.methods.vaccine import Vaccine

METHODS: dict[str, type[Method]] = {
    "none": Method,
    "filter": Method,
    "fixed_kl": Method,
    "adaptive_kl": Method,
    "constrained_sft": ConstrainedSFT,
    "vaccine": Vaccine,
    "lisa": Lisa,
    "antidote": Antidote,
    "safety_mix": Method,
}


def build_method(safety: AnySafety, layout: Layout) -> Method:
    """Return the method that a job's `safety` asks for."""
    return METHODS[safety.method](safety, layout)
