"""What each operation answers with, for readers and for the tests that hold replies against it.

Endpoints return plain objects that the `*_to_wire` functions build, so that no reply is checked while it is sent. A new
operation gets a line in OBJECTS or MEDIA_TYPES.
"""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

Item = TypeVar("Item")


class Reply(BaseModel):
    """An object of the wire. Fields may be added to it at any time."""

    model_config = ConfigDict(extra="allow")


class ListOf(Reply, Generic[Item]):
    """A page. `after` set to the last id asks for the next one."""

    object: Literal["list"]
    data: list[Item]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class Error(Reply):
    """What was wrong: in words, by field, and as a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    """Every refusal and every failure."""

    error: Error


class Health(Reply):
    """How the service is."""

    status: str


class File(Reply):
    """An uploaded file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None
    rows: int | None


class Deleted(Reply):
    """What is gone."""

    id: str
    object: str
    deleted: bool


class CommitmentKey(Reply):
    """The key of the digests by which records name a file's rows, in hex."""

    id: str
    object: Literal["file.commitment_key"]
    key: str


class FileErasure(Reply):
    """What is left of an erased file, and what else may hold its rows: files and models that nobody erased yet."""

    id: str
    object: Literal["file.erasure"]
    erased: bool
    erased_at: int
    sha256: str
    same_bytes: list[str]
    derived_files: list[str]
    models: list[str]
    later_models: list[str]
    replies_files: list[str]


class JobError(Reply):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobSafety(Reply):
    """How a job is protected, with every default resolved, and what was measured so far."""

    method: str
    state: str
    waits_for: str | None
    protected: bool
    gate: dict[str, Any] | None
    critic: dict[str, Any] | None
    risk_mean: float | None
    beta_mean: float | None
    attempts: int


class JobTraining(Reply):
    """The training options as they were resolved, and how far the job is."""

    started_at: int | None
    steps_completed: int
    total_steps: int | None
    steps_pruned_at: int | None


class FineTuningJob(Reply):
    """A job, with our `safety` and `training` beside OpenAI's fields."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    created_by: str | None
    error: JobError | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: dict[str, Any]
    integrations: list[dict[str, Any]] | None
    metadata: dict[str, str] | None
    method: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    suffix: str | None
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    safety: JobSafety
    training: JobTraining


class JobEvent(Reply):
    """A line of a job's log; of the type metrics, `data` has the numbers of a step."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class StreamEnd(Reply):
    """The last message of a stream, and why nothing comes after it."""

    object: Literal["fine_tuning.job.stream_end"]
    reason: Literal["job_ended", "key_revoked", "slow_client", "shutdown"]
    message: str


class JobCheckpoint(Reply):
    """A checkpoint at the end of a pass over the data."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, Any]
    safety: dict[str, Any]


class StepRecord(Reply):
    """All numbers of a step, lossless."""

    step: int


class JobExample(Reply):
    """A row that a job learns from. `text` is there for a key that may read files, and null where the file is not."""

    object: Literal["fine_tuning.job.example"]
    row: int
    risk: float | None
    status: str
    treatment: str
    alpha: float | None
    beta: float | None
    times_seen: int | None
    text: str | None = None


class RiskCurve(Reply):
    """The risk of every step and what was done about it; `columns` names the values of each row.

    `marks` are what else happened: `{"step", "kind", "label"}`, `kind` being checkpoint, pause or policy.
    """

    object: Literal["risk_curve"]
    job: str
    critic: dict[str, Any] | None
    columns: list[str]
    rows: list[list[float | None]]
    total_steps: int | None
    marks: list[dict[str, Any]]


class Model(Reply):
    """A base model, a fine-tuned model, or a checkpoint of one; only the latter two have a `base_model`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    base_model: str | None


class Critic(Reply):
    """A critic of a base model. Its numbers are null until it is fitted."""

    id: str
    object: Literal["critic"]
    created_at: int
    model: str | None
    category: str
    pooling: str | int
    status: str
    error: dict[str, Any] | None
    sha256: str | None
    low: float | None
    high: float | None
    threshold: float | None
    quality: dict[str, float | None] | None


class Evaluation(Reply):
    """How a model behaves before and after. The result is null until it is there, and lists leave it out."""

    id: str
    object: Literal["evaluation"]
    created_at: int
    finished_at: int | None
    status: str
    error: dict[str, Any] | None
    model: str
    base_model: str
    fine_tuning_job_id: str | None
    suite: str
    judge: list[dict[str, Any]]
    decoding: dict[str, Any]
    result_sha256: str | None
    replies_file: str | None
    result: dict[str, Any] | None = None


class SafetySet(Reply):
    """Rows that protect every job on a base model."""

    id: str
    object: Literal["safety_set"]
    created_at: int
    model: str
    kind: str
    rows: int
    sha256: str


class WebhookEndpoint(Reply):
    """An address that is told of events."""

    id: str
    object: Literal["webhook_endpoint"]
    created_at: int
    name: str
    url: str
    event_types: list[str]
    enabled: bool


class Delivery(Reply):
    """One event for one endpoint, and how sending it goes."""

    id: str
    object: Literal["webhook_endpoint.delivery"]
    created_at: int
    webhook_endpoint_id: str
    event_id: str
    event_type: str
    status: str
    attempts: int


class Names(Reply):
    """A list of names."""

    object: Literal["list"]
    data: list[str]


class WebhookTest(Reply):
    """How a sample event was received."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: bool


class Upload(Reply):
    """A file that is sent in parts."""

    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: File | None


class UploadPart(Reply):
    """A part of an upload."""

    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str


class Permission(Reply):
    """That a project may use a fine-tuned model or checkpoint of another one."""

    id: str
    object: Literal["checkpoint.permission"]
    created_at: int
    project_id: str


class ApiKey(Reply):
    """A key. What opens is in `key`, in the reply to the request that made it and nowhere else."""

    id: str
    object: Literal["api_key"]
    name: str
    project_id: str
    role: str
    scopes: list[str]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None
    replaced_by: str | None
    key: str | None = None


class Project(Reply):
    """A project with the limits that hold for it, and those among them that are its own."""

    id: str
    object: Literal["project"]
    name: str
    created_at: int
    policy: str | None
    limits: dict[str, Any]
    own_limits: dict[str, Any]


class Policy(Reply):
    """A version of a safety policy, as it was read; one that is asked for by its id has its text in `content`."""

    id: str
    object: Literal["policy"]
    created_at: int
    name: str
    version: int
    sha256: str
    policy: dict[str, Any]


class PresetUnderPolicy(Reply):
    """What the name of a preset stands for, and the first thing about it that the policy refuses."""

    safety: dict[str, Any]
    protected: bool
    refused: Error | None


class PolicyInForce(Reply):
    """The policy that a new job of the project is held to; `id` is null where it is the installation's."""

    object: Literal["policy_in_force"]
    id: str | None
    name: str
    version: int
    sha256: str
    policy: dict[str, Any]
    presets: dict[str, PresetUnderPolicy]


class Report(Reply):
    """A report on a dataset, or the estimate of a job; while the status is running, it is not there yet (202)."""

    object: str
    status: str


class Excluded(Reply):
    """The file without the rows, and the job that runs on it."""

    object: Literal["file.exclusion"]
    file: File
    job: FineTuningJob | None


class Usage(Reply):
    """What a project used, or a list of that for all projects."""

    object: str


OBJECTS: dict[str, type[Reply]] = {
    "healthz": Health,
    "readyz": Health,
    "create_file": File,
    "retrieve_file": File,
    "list_files": ListOf[File],
    "delete_file": Deleted,
    "erase_file": FileErasure,
    "retrieve_commitment_key": CommitmentKey,
    "create_job": FineTuningJob,
    "retrieve_job": FineTuningJob,
    "list_jobs": ListOf[FineTuningJob],
    "cancel_job": FineTuningJob,
    "pause_job": FineTuningJob,
    "resume_job": FineTuningJob,
    "release_job": FineTuningJob,
    "reject_job": FineTuningJob,
    "create_policy": Policy,
    "retrieve_policy": Policy,
    "list_policies": ListOf[Policy],
    "retrieve_policy_in_force": PolicyInForce,
    "list_events": ListOf[JobEvent],
    "list_checkpoints": ListOf[JobCheckpoint],
    "list_steps": ListOf[StepRecord],
    "list_examples": ListOf[JobExample],
    "retrieve_risk": RiskCurve,
    "list_models": ListOf[Model],
    "retrieve_model": Model,
    "create_critic": Critic,
    "retrieve_critic": Critic,
    "list_critics": ListOf[Critic],
    "create_evaluation": Evaluation,
    "retrieve_evaluation": Evaluation,
    "cancel_evaluation": Evaluation,
    "list_evaluations": ListOf[Evaluation],
    "create_set": SafetySet,
    "retrieve_set": SafetySet,
    "list_sets": ListOf[SafetySet],
    "delete_model": Deleted,
    "create_upload": Upload,
    "complete_upload": Upload,
    "cancel_upload": Upload,
    "add_part": UploadPart,
    "create_permissions": ListOf[Permission],
    "list_permissions": ListOf[Permission],
    "delete_permission": Deleted,
    "create_key": ApiKey,
    "rotate_key": ApiKey,
    "retrieve_key": ApiKey,
    "revoke_key": ApiKey,
    "list_keys": ListOf[ApiKey],
    "create_project": Project,
    "change_project": Project,
    "retrieve_project": Project,
    "list_projects": ListOf[Project],
    "retrieve_usage": Usage,
    "retrieve_file_report": Report,
    "retrieve_report": Report,
    "estimate_job": Report,
    "exclude_rows": Excluded,
    "list_event_types": Names,
    "create_endpoint": WebhookEndpoint,
    "retrieve_endpoint": WebhookEndpoint,
    "update_endpoint": WebhookEndpoint,
    "rotate_secret": WebhookEndpoint,
    "test_endpoint": WebhookTest,
    "list_endpoints": ListOf[WebhookEndpoint],
    "delete_endpoint": Deleted,
    "list_deliveries": ListOf[Delivery],
    "redeliver": Delivery,
}
"""What an operation, by the name of its function, answers with when all is well."""

MEDIA_TYPES: dict[str, tuple[str, ...]] = {
    "retrieve_content": ("application/octet-stream",),
    "retrieve_adapter": ("application/zip",),
    "retrieve_checkpoint_adapter": ("application/zip",),
    "retrieve_evidence": ("application/zip",),
    "stream_job": ("text/event-stream",),
    "retrieve_file_report": ("text/html",),
    "retrieve_report": ("text/html",),
    "read_metrics": ("text/plain",),
    "retrieve_checkpoint": ("text/plain",),
    "retrieve_log_checkpoint": ("text/plain",),
    "retrieve_entries": ("application/octet-stream",),
    "retrieve_tile": ("application/octet-stream",),
    "retrieve_receipt": ("text/plain",),
    "retrieve_attestation": ("application/vnd.dsse.envelope.v1+json",),
    "retrieve_model_card": ("text/html",),
    "retrieve_risk": ("text/csv", "image/png", "image/svg+xml"),
}
"""What an operation answers with that is not JSON."""

STREAMS: dict[str, dict[str, type[Reply]]] = {
    "stream_job": {"job": FineTuningJob, "event": JobEvent, "step": StepRecord, "end": StreamEnd},
}
"""The messages of an operation that answers with server-sent events: what the data of each kind are."""

OTHER_CODES = {
    "readyz": ("503",),
    "retrieve_file_report": ("202",),
    "retrieve_report": ("202",),
    "estimate_job": ("202",),
}
"""Further statuses under which an operation answers with its object."""

UNCHANGED = frozenset({"retrieve_job", "retrieve_risk"})
"""Operations whose replies carry an ETag, and which answer 304 to who names it in If-None-Match."""

CREATES = {
    "create_file": "file_id",
    "create_job": "job_id",
    "create_critic": "critic_id",
    "create_evaluation": "evaluation_id",
    "create_set": "set_id",
    "create_endpoint": "webhook_endpoint_id",
    "create_upload": "upload_id",
    "create_key": "key_id",
    "create_project": "project_id",
    "create_policy": "policy_id",
}
"""The path parameter that the `id` in a reply is good for."""
