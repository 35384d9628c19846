"""Every setting of the service, read once from a mapping. Nothing else reads the environment."""

import os
import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from app import failpoints
from app.domain.retention import FLOOR_DAYS
from app.errors import ConfigurationError
from app.webhooks.signing import read_secret

PREFIX = "TETHER_"
CLIENT_VARIABLES = frozenset({"TETHER_URL"})
"""Read by commands that speak to a running service, not by the service."""
TEST_VARIABLES = "TETHER_TEST_"
SECRETS = frozenset({"api_key", "judge_api_key", "mlflow_token", "anchor_url", "anchor_secret"})
"""Fields that are shown to nobody, not even in an error about them."""

TRAINER_DEFAULTS = {
    # Threads that spin while they wait slow each other down tenfold where processes share cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    # CUDA's matrix products are deterministic only with a fixed workspace.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Variables of other libraries that a child process gets unless they are set already."""
TRAINER_WALLS = {
    # A model is a folder of this machine. Nothing of it is ever looked for elsewhere.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Variables of other libraries that a child process gets whatever they are set to."""
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"

MIB = 1024 * 1024
MAX_DAYS = 36_525
"""A century: the longest for which anything is kept by a setting."""


class Settings(BaseModel):
    """Frozen settings. The environment name of a field is TETHER_ and the field in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    home: Path = Field(Path(".tether"), description="Folder of all state on the embedded default.")
    database_url: str = Field("", description="SQLAlchemy URL. Default: SQLite in the home folder.")
    broker_url: str = Field(
        "", description="Celery broker URL. Default: a queue of files in the home folder."
    )
    storage_dir: Path = Field(
        Path(),
        description="Folder of checkpoints and, where no storage URL is set, of files and weights. Default:"
        " storage/ in the home folder.",
    )
    storage_url: Annotated[str, Field(pattern=r"^(s3://[a-z0-9][a-z0-9.-]+(/[\w.-]+)*)?$")] = Field(
        "",
        description="Bucket of files and weights, s3://bucket or s3://bucket/prefix. Default: the storage folder.",
    )
    api_key: SecretStr | None = Field(
        None,
        description="An administrator key, added at the start if it is not there yet: set it too when the first one is"
        " lost. Default: one is made at the first start, and shown once.",
    )
    policy_file: Path | None = Field(
        None,
        description="TOML file of the safety policy. Default: the shipped one, which allows every method.",
    )
    max_file_bytes: Annotated[int, Field(ge=1)] = Field(512 * MIB, description="Largest upload.")
    sync_check_bytes: Annotated[int, Field(ge=0)] = Field(
        8 * MIB,
        description="Files up to this size are checked while they are uploaded, larger ones afterwards.",
    )
    deletion_grace_s: Annotated[float, Field(ge=0, le=30 * 86_400)] = Field(
        3600.0, description="The bytes of a deleted file go this long after the deletion."
    )
    lease_s: Annotated[float, Field(gt=0)] = Field(
        60.0, description="A worker that has not renewed its lease for this long has lost its work."
    )
    heartbeat_s: Annotated[float, Field(gt=0)] = Field(10.0, description="Time between renewals of a lease.")
    reconcile_interval_s: Annotated[float, Field(gt=0)] = Field(
        5.0, description="Time between two rounds of the reconciler."
    )
    stall_s: Annotated[float, Field(gt=0)] = Field(
        1800.0,
        description="Work that gets nowhere for this long (no micro-batch, no generated token, no judged reply) counts as"
        " hung: its process logs every thread's stack and exits, and the work is tried again. It must be longer than a"
        " model takes to be loaded and checked: 100 GB at 100 MB/s are 17 minutes.",
    )
    requeue_after_s: Annotated[float, Field(gt=0)] = Field(
        30.0,
        description="Queued work that nobody claimed for this long is announced again, and a worker that hears nothing"
        " looks for work this often. Work that has failed twice in a row without a newer checkpoint waits this long.",
    )
    max_attempts_without_progress: Annotated[int, Field(ge=1)] = Field(
        3, description="Attempts in a row without a newer checkpoint before a job fails as poison."
    )
    max_infrastructure_failures: Annotated[int, Field(ge=0)] = Field(
        60,
        description="Attempts without a newer checkpoint that may end by a full disk, or a storage, model folder or database"
        " that is away, each followed by a wait of TETHER_REQUEUE_AFTER_S.",
    )
    reference_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        1024 * MIB,
        description="Memory for the reference's hidden states; rows beyond it use the live reference.",
    )
    disk_reserve_bytes: Annotated[int, Field(ge=0)] = Field(
        256 * MIB,
        description="Bytes that stay free on the disks of storage and checkpoints, so that the database and the log beside"
        " them can still be written: an upload beyond that is refused, a job waits or pauses itself.",
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        0, description="Threads of a trainer on the CPU. 0: as many as torch chooses."
    )
    trainer_memory_bytes: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Memory of a process that works, beside that of a GPU. 0: no limit. What enforces it, and where nothing"
        " can, is in docs/deploy.md.",
    )
    notary_dir: Path = Field(
        Path(),
        description="Folder of the notary's key and of what it signed last: the notary's own, and backed up apart from the"
        " database. Default: notary/ in the home folder.",
    )
    log_origin: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9./-]{0,199})?$")] = Field(
        "",
        description="Name of the installation's log, such as tether.example.com/log. It counts when the log is made. Default:"
        " tether/ and a random number.",
    )
    head_interval_s: Annotated[float, Field(ge=0)] = Field(
        60.0, description="Time between two entries of a running job in the installation's log."
    )
    anchor_url: str = Field(
        "",
        description="URL to which the signed checkpoint of the installation's log is sent, at another place than the"
        " installation's own. It is reached as webhooks are. Default: none, and it is sent nowhere.",
    )
    anchor_secret: SecretStr | None = Field(
        None,
        description="Secret that signs these messages as webhooks are signed, whsec_ and Base64. Default: they are not"
        " signed; the checkpoint in them is, in any case.",
    )
    anchor_interval_s: Annotated[float, Field(ge=1)] = Field(
        60.0, description="Least time between two such messages."
    )
    retention_steps_days: Annotated[int, Field(le=MAX_DAYS)] = Field(
        730,
        description="Days after the end of a job for which the records of its steps are kept at least; then `tether ledger"
        " prune` may take them. No fewer than 183.",
    )
    retention_records_days: Annotated[int, Field(le=MAX_DAYS)] = Field(
        3653,
        description="The same for its other records, but for the first and the last, which stay. No fewer than those of the"
        " steps.",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Form of log lines: text for people, json for machines."
    )
    judge_url: str = Field(
        "",
        description="Base URL of the OpenAI-compatible server that judges, such as http://localhost:8001/v1. Default:"
        " none, and jobs with a judge are refused.",
    )
    judge_model: str = Field("", description="Model that judges, by the name that its server knows.")
    judge_api_key: SecretStr | None = Field(
        None, description="Key for the judge's server. Only workers need it. Default: none is sent."
    )
    judge_timeout_s: Annotated[float, Field(gt=0, le=600)] = Field(
        60.0, description="Time for one verdict, retries included; then it counts as failed."
    )
    judge_concurrency: Annotated[int, Field(ge=1, le=256)] = Field(
        8, description="Verdicts that a job asks for at once."
    )
    classifier_dir: Path | None = Field(
        None,
        description="Local Hugging Face directory of the text classifier that evaluations may be judged by; safetensors only."
        " Default: none, and such evaluations are refused.",
    )
    classifier_harmful_labels: str = Field(
        "",
        description="The classifier's labels that mean harm, by their names in its config.json, with commas.",
    )
    classifier_threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="Probability of these labels from which a reply counts as harmful."
    )
    mlflow_tracking_uri: str = Field(
        "",
        description="Base URL of the MLflow server that jobs may be exported to, such as http://mlflow.internal:5000."
        " Default: none, and jobs with such an integration are refused.",
    )
    mlflow_token: SecretStr | None = Field(
        None, description="Bearer token for the MLflow server. Only workers need it. Default: none is sent."
    )
    webhook_private_hosts: str = Field(
        "",
        description="Hosts, separated by commas and without ports, to which webhooks may go by plain HTTP and at private"
        " addresses, such as 127.0.0.1,hooks.internal. Default: none.",
    )
    webhook_timeout_s: Annotated[float, Field(gt=0, le=60)] = Field(
        10.0, description="Time that the receiver of a webhook has for its reply."
    )
    webhook_log_days: Annotated[int, Field(ge=4, le=365)] = Field(
        30, description="Days after which a delivery of a webhook leaves the log."
    )

    requests_per_minute: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Requests that a key may send in a minute, counted in the broker's Redis where it is one, else in"
        " each API process. 0: no limit.",
    )
    project_storage_bytes: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Bytes of files, uploads under way and weights that a project may keep, unless it has a limit of its"
        " own. 0: no limit.",
    )
    project_running_jobs: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Jobs of a project that run at the same time, likewise; more of them wait. 0: no limit.",
    )
    project_queued_jobs: Annotated[int, Field(ge=0)] = Field(
        1000, description="Jobs of a project that wait at the same time, likewise. 0: no limit."
    )
    project_gpu_seconds: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Seconds that workers of the queue gpu may spend on a project in a calendar month, likewise. 0: no"
        " limit.",
    )

    @model_validator(mode="after")
    def _lease_outlives_heartbeats(self) -> "Settings":
        # A lease counts as lost at three quarters of its length; two heartbeats must fit before.
        if self.heartbeat_s * 2 > self.lease_s * 0.75:
            raise ValueError(
                f"TETHER_HEARTBEAT_S ({self.heartbeat_s:g}) is too long for TETHER_LEASE_S ({self.lease_s:g}): a lease"
                " needs room for two heartbeats in three quarters of its length"
            )
        return self

    @model_validator(mode="after")
    def _records_are_kept_long_enough(self) -> "Settings":
        if self.retention_steps_days < FLOOR_DAYS:
            raise ValueError(
                f"TETHER_RETENTION_STEPS_DAYS ({self.retention_steps_days}) is below {FLOOR_DAYS}: the logs of an AI system"
                " are kept for six months at least (Regulation (EU) 2024/1689, Articles 19(1) and 26(6)); set"
                f" {FLOOR_DAYS} or more"
            )
        if self.retention_records_days < self.retention_steps_days:
            raise ValueError(
                f"TETHER_RETENTION_RECORDS_DAYS ({self.retention_records_days}) is below TETHER_RETENTION_STEPS_DAYS"
                f" ({self.retention_steps_days}): a job's records outlive those of its steps; set as many or more"
            )
        return self

    @model_validator(mode="after")
    def _judge_is_usable(self) -> "Settings":
        # What is wrong is said without the value: a URL may hold a password, and a key is one.
        if bool(self.judge_url) is not bool(self.judge_model):
            raise ValueError("TETHER_JUDGE_URL and TETHER_JUDGE_MODEL need each other; set both or none")
        if self.judge_url and not _is_plain_url(self.judge_url):
            raise ValueError(
                "TETHER_JUDGE_URL is not of the form http://host:port/v1 or https://…, without user, query and fragment"
            )
        if self.judge_url.rstrip("/").endswith("/chat/completions"):
            raise ValueError(
                "TETHER_JUDGE_URL is the base URL, such as http://host/v1: leave /chat/completions off"
            )
        key = self.judge_api_key.get_secret_value() if self.judge_api_key else ""
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("TETHER_JUDGE_API_KEY has characters that no HTTP header can carry")
        if self.judge_url and self.judge_timeout_s >= self.stall_s:
            raise ValueError(
                f"TETHER_STALL_S ({self.stall_s:g}) is too short for TETHER_JUDGE_TIMEOUT_S ({self.judge_timeout_s:g}): work"
                " that waits for one verdict would count as hung; set it longer"
            )
        return self

    @model_validator(mode="after")
    def _classifier_has_labels(self) -> "Settings":
        if (self.classifier_dir is None) is not (not self.harmful_labels):
            raise ValueError(
                "TETHER_CLASSIFIER_DIR and TETHER_CLASSIFIER_HARMFUL_LABELS need each other; set both or none"
            )
        return self

    @property
    def harmful_labels(self) -> tuple[str, ...]:
        """The labels of TETHER_CLASSIFIER_HARMFUL_LABELS."""
        return tuple(filter(None, (each.strip() for each in self.classifier_harmful_labels.split(","))))

    @model_validator(mode="after")
    def _private_hosts_are_hosts(self) -> "Settings":
        wrong = [each for each in self.private_hosts if not _is_host(each)]
        if wrong:
            raise ValueError(
                f"TETHER_WEBHOOK_PRIVATE_HOSTS: {wrong[0]!r} is not a host's name or address alone, such as hooks.internal"
                " or ::1"
            )
        return self

    @model_validator(mode="after")
    def _anchor_is_usable(self) -> "Settings":
        # The URL may hold a token, and is not repeated. Where it leads is looked at whenever something is sent.
        parts = urlsplit(self.anchor_url)
        allowed = ("https", "http") if parts.hostname in self.private_hosts else ("https",)
        if self.anchor_url and (parts.scheme not in allowed or not parts.hostname):
            raise ValueError(
                "TETHER_ANCHOR_URL is not of the form https://host/path; plain HTTP and private addresses are for hosts that"
                " TETHER_WEBHOOK_PRIVATE_HOSTS names"
            )
        try:
            if self.anchor_secret is not None:
                read_secret(self.anchor_secret.get_secret_value())
        except ValueError as error:
            raise ValueError(f"TETHER_ANCHOR_SECRET {error}") from None
        return self

    @property
    def private_hosts(self) -> frozenset[str]:
        """The hosts of TETHER_WEBHOOK_PRIVATE_HOSTS."""
        named = (each.strip().lower() for each in self.webhook_private_hosts.split(","))
        return frozenset(each for each in named if each)

    @model_validator(mode="after")
    def _mlflow_is_usable(self) -> "Settings":
        if self.mlflow_tracking_uri and not _is_plain_url(self.mlflow_tracking_uri):
            raise ValueError(
                "TETHER_MLFLOW_TRACKING_URI is not of the form http://host:port or https://…, without user, query and"
                " fragment"
            )
        token = self.mlflow_token.get_secret_value() if self.mlflow_token else ""
        if not (token.isascii() and token.isprintable() and " " not in token):
            raise ValueError("TETHER_MLFLOW_TOKEN has characters that no HTTP header can carry")
        return self

    @property
    def storage(self) -> Path | str:
        """Where the bytes of files and weights are kept: the URL of a bucket, or a folder."""
        return self.storage_url or self.storage_dir

    @property
    def checkpoints_dir(self) -> Path:
        """Where this machine keeps the checkpoints that jobs resume from, whatever else is in a bucket."""
        return self.storage_dir / "checkpoints"

    @property
    def has_data(self) -> bool:
        """Whether there is a database to look at. A server may be away; a file that is missing was never made."""
        file = self.database_url.removeprefix("sqlite:///")
        return file == self.database_url or Path(file).exists()

    def child_environment(self) -> dict[str, str]:
        """Return the environment of a child process: ours, with these settings; the API's key stays behind."""
        values = self.model_dump(mode="json", exclude=set(SECRETS), exclude_none=True)
        for name in ("judge_api_key", "mlflow_token"):
            secret_value: SecretStr | None = getattr(self, name)
            if secret_value is not None:
                values[name] = secret_value.get_secret_value()
        secret = {PREFIX + name.upper() for name in SECRETS}
        ours = {name: value for name, value in os.environ.items() if name not in secret}
        return {
            **TRAINER_DEFAULTS,
            **ours,
            **TRAINER_WALLS,
            **{PREFIX + name.upper(): str(value) for name, value in values.items()},
        }


def _is_plain_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # Raises where it is no number.
    except ValueError:
        return False
    printable = url.isascii() and url.isprintable() and " " not in url
    plain = "@" not in parts.netloc and "?" not in url and "#" not in url
    return parts.scheme in ("http", "https") and bool(parts.hostname) and printable and plain


def _is_host(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", text) is not None
    return True


def read_visible_devices() -> list[str] | None:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names; None where it is not set, and all are visible."""
    text = os.environ.get(VISIBLE_DEVICES)
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    # CUDA reads up to the first one that names nothing.
    end = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
    return names[:end]


def show_devices(names: Sequence[str]) -> None:
    """Let CUDA see these GPUs and no others, in this process. It is read once, when CUDA is first used."""
    os.environ[VISIBLE_DEVICES] = ",".join(names)


def make_home(settings: Settings) -> None:
    """Make the folder of local state, readable by its owner alone."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(
            f"the folder {settings.home} cannot be made ({error.strerror}); make it, or name another one by TETHER_HOME"
        ) from error


def load_settings(environment: Mapping[str, str] | None = None, **overrides: object) -> Settings:
    """Read settings from a mapping (the process environment unless given) and complete their defaults.

    Raises ConfigurationError naming the variable for an unknown or unusable one.
    """
    if environment is None:
        # Every process comes by here, so that none runs with fewer failpoints than it was told to have.
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    values: dict[str, object] = {}
    for name, text in (os.environ if environment is None else environment).items():
        if not name.startswith(PREFIX) or name in CLIENT_VARIABLES or name.startswith(TEST_VARIABLES):
            continue
        field = name.removeprefix(PREFIX).lower()
        if field not in Settings.model_fields:
            known = ", ".join(PREFIX + each.upper() for each in Settings.model_fields)
            raise ConfigurationError(f"{name} is not a setting. Settings: {known}")
        if text != "":
            values[field] = text
    values |= {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise ConfigurationError(first["msg"].removeprefix("Value error, ")) from None
        field = str(first["loc"][0])
        found = "" if field in SECRETS else f" (found {first['input']!r})"
        raise ConfigurationError(f"{PREFIX}{field.upper()}: {first['msg']}{found}") from None
    home = settings.home.absolute()
    completed = {
        "home": home,
        "database_url": settings.database_url or f"sqlite:///{home / 'tether.db'}",
        "broker_url": settings.broker_url or f"safefs://{home / 'queue'}",
        "notary_dir": settings.notary_dir.absolute() if "notary_dir" in values else home / "notary",
        "storage_dir": settings.storage_dir.absolute() if "storage_dir" in values else home / "storage",
    }
    return settings.model_copy(update=completed)
