"""The one tree of errors.

Every error says what happened, where, and what to do next. It carries the HTTP status and the fields of the
wire's error form, so that one handler can turn any of them into a reply, and it pickles, so that it can cross
a process boundary.
"""

from typing import Any


class TetherError(Exception):
    """Base of every error that Tether raises on purpose."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own __reduce__ would lose the keyword arguments.
        return _rebuild, (type(self), self.message, self.param, self.code)

    def to_wire(self) -> dict[str, Any]:
        """Return the inner object of OpenAI's error form: message, type, param, code."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def lines(self) -> tuple[str, ...]:
        """Return the message as a terminal shows it."""
        return (self.message,)


def _rebuild(cls: type[TetherError], message: str, param: str | None, code: str | None) -> TetherError:
    return cls(message, param=param, code=code)


class InvalidRequest(TetherError):
    """The request is wrong in itself; `param` names the field by its JSON path."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidTrainingFile(InvalidRequest):
    """A data file is wrong; the message names line and JSON path. Several problems of a file stand one behind another."""

    code = "invalid_training_file"

    def __init__(
        self,
        message: str,
        *,
        problems: tuple[str, ...] = (),
        param: str | None = None,
        code: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{message}: {'; '.join(problems)}" if problems else message, param=param, code=code)
        self.details = details or {}
        """Fields of the wire's error object beside its four: what is wrong, for programs."""
        self._lines = (f"{message}:", *(f"  {each}" for each in problems)) if problems else (message,)

    def to_wire(self) -> dict[str, Any]:
        """Return the wire's error object with the details beside."""
        return {**super().to_wire(), **self.details}

    def lines(self) -> tuple[str, ...]:
        """Return the message with a line for each problem."""
        return self._lines


class PolicyViolation(InvalidRequest):
    """The request asks for less protection than the operator's policy allows."""

    code = "policy_violation"


class NotAuthenticated(TetherError):
    """No key, or a key that is not known."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class PermissionDenied(TetherError):
    """The key is good and its role does not allow this."""

    status = 403
    type = "invalid_request_error"
    code = "permission_denied"


class NotFound(TetherError):
    """There is no such thing, or it belongs to another project."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class Gone(TetherError):
    """It was there, and is kept no longer."""

    status = 410
    type = "invalid_request_error"
    code = "gone"


class Conflict(TetherError):
    """The thing exists and is in a state that does not allow this."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class QuotaExceeded(TetherError):
    """The project has used up what it may use. Asking again does not help."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class RateLimited(TetherError):
    """The key sent more requests than it may in a minute. Asking again later helps."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"


class PayloadTooLarge(TetherError):
    """The body is larger than the operator's limit."""

    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"


class ClientGone(TetherError):
    """The client closed its connection. Nobody reads this error; the log has its status."""

    status = 499
    type = "invalid_request_error"
    code = "client_gone"


class NotSupported(TetherError):
    """The wire has this and this service does not; the message says what to do instead."""

    status = 501
    code = "not_supported"


class TooManyWatchers(TetherError):
    """More streams and long polls are open than one process, or one project, may have."""

    status = 429
    type = "invalid_request_error"
    code = "too_many_watchers"


class StorageUnavailable(TetherError):
    """The disk or object store cannot take or give the bytes."""

    status = 503
    code = "storage_unavailable"


class StorageFull(StorageUnavailable):
    """There is no room for the bytes on the disk. Whoever frees some can try again."""

    status = 507
    code = "storage_full"


class BytesMissing(StorageUnavailable):
    """The storage answers, and the bytes are not there. Work waits for their restore, within its infrastructure budget."""


class BytesDamaged(StorageUnavailable):
    """The storage answers, with other bytes than were stored. Work waits for their restore, as for missing ones."""


class DatabaseUnavailable(TetherError):
    """The database does not answer."""

    status = 503
    code = "database_unavailable"


class BrokerUnavailable(TetherError):
    """The broker does not answer."""

    status = 503
    code = "broker_unavailable"


class ChartsUnavailable(TetherError):
    """Pictures were asked for where the `charts` extra is not installed."""

    status = 501
    code = "charts_unavailable"


class ConfigurationError(TetherError):
    """A setting or a policy file is unusable."""

    code = "configuration"


class NotaryRefuses(TetherError):
    """The database is not the one that the notary signed: it signs nothing that contradicts its own memory."""

    code = "notary_refuses"


class LeaseLost(TetherError):
    """This process no longer owns its work: another one took over, or the database could not be reached."""

    code = "lease_lost"


class JobFailure(TetherError):
    """A job cannot go on; code, message and param become the job's `error`."""

    code = "training_failed"


class InvalidBaseModel(TetherError):
    """A model directory is not one that Tether will load."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_base_model"


class CriticUnusable(JobFailure):
    """A critic cannot be fitted, or was fitted for another base model or template."""

    code = "critic_unusable"
