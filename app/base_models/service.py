"""Registering base models: a local folder becomes a name, pinned by the digest of every file."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.base_models import repository
from app.domain.ledger import digest_of, identifier
from app.domain.model_config import why_refused
from app.domain.safetensors_header import check_safetensors
from app.errors import Conflict, InvalidBaseModel, InvalidRequest, StorageUnavailable
from app.models.base import utc_now
from app.models.base_model import BaseModel
from app.notary.repository import COMMAND_LINE, add_event

ALLOWED = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|model\.safetensors\.index)\.json|merges\.txt|chat_template\.(jinja|json)|[\w.-]+\.safetensors"
)
"""Files that are loaded, and so are pinned. Documents beside them are left alone; anything else is refused."""
DOCUMENTS = re.compile(
    r"README\.md|SHA256SUMS|LICENSE.*|USE_POLICY\.md|NOTICE.*|\.gitattributes", re.IGNORECASE
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")


def register_base_model(
    session: Session,
    name: str,
    folder: Path,
    *,
    revision: str | None = None,
    training_flops: float | None = None,
    actor: str = COMMAND_LINE,
) -> BaseModel:
    """Register a local model folder. Raises InvalidBaseModel saying which file is refused and why.

    Registering the same bytes again under the same name is harmless, and adds what was not said before; other bytes need
    another name, because jobs and critics are bound to the digests.
    """
    if not NAME.fullmatch(name) or name.startswith("ft:"):
        raise InvalidBaseModel(
            f"the name {name!r} cannot be used; letters, digits, '.', '_', '-' and '/' can, 100 at most"
        )
    if revision is not None and identifier(revision) != revision:
        raise InvalidBaseModel(
            f"the revision {revision!r} cannot be recorded; give a commit, a tag or a number"
        )
    if training_flops is not None and not 0 < training_flops < math.inf:
        raise InvalidBaseModel(
            f"the original training took {training_flops:g} operations; give a number above 0"
        )
    folder = folder.absolute()
    config, files = inspect_folder(folder)
    digest = digest_of(files)
    known = repository.get_base_model(session, name)
    if known is not None:
        if known.digest != digest:
            raise Conflict(
                f"the name {name!r} belongs to another model (digest {known.digest[:12]}, not {digest[:12]});"
                " register this one under another name"
            )
        known.path = str(folder)
        known.revision = revision or known.revision
        known.training_flops = training_flops or known.training_flops
        return known
    text = config.get("text_config", config)
    try:
        sizes = {key: int(text[key]) for key in ("hidden_size", "max_position_embeddings")}
    except (KeyError, TypeError, ValueError):
        raise InvalidBaseModel(
            f"{folder / 'config.json'} does not give hidden_size and max_position_embeddings"
        ) from None
    base = BaseModel(
        name=name,
        path=str(folder),
        digest=digest,
        files=files,
        revision=revision,
        training_flops=training_flops,
        created_at=utc_now(),
        **sizes,
    )
    session.add(base)
    add_event(session, "base_model.registered", actor=actor, subject=name, sha256=digest)
    return base


def find_base_model(session: Session, name: str) -> BaseModel:
    """Return the base model that a request names. Raises InvalidRequest that lists those that there are."""
    base = repository.get_base_model(session, name)
    if base is None:
        known = ", ".join(each.name for each in repository.list_base_models(session))
        raise InvalidRequest(
            f"model: no base model is called {name!r}; base models: {known or 'none yet (tether models add)'}",
            param="model",
            code="model_not_found",
        )
    return base


def inspect_folder(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the configuration of a model folder and the SHA-256 of each file that is loaded."""
    if not folder.is_dir():
        raise InvalidBaseModel(f"{folder} is not a folder; give a local Hugging Face model directory")
    files: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InvalidBaseModel(f"{name} is a link out of the folder; copy the file itself into it")
        if path.is_dir() or DOCUMENTS.fullmatch(name):
            continue
        if not ALLOWED.fullmatch(name):
            raise InvalidBaseModel(
                f"{name} is not a file that a base model may have: only safetensors weights, tokenizer and"
                " configuration are loaded; code and pickled weights never are. Remove it, or convert the weights"
            )
        if name.endswith(".safetensors"):
            _check_safetensors(path, name)
        elif name.endswith(".json"):
            _check_json(path, name)
        files[name] = hash_file(path)
    for needed in ("config.json", "tokenizer_config.json"):
        if needed not in files:
            raise InvalidBaseModel(f"{folder} has no {needed}; give a Hugging Face model directory")
    if not any(name.endswith(".safetensors") for name in files):
        raise InvalidBaseModel(f"{folder} has no weights in safetensors format; convert them first")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config, files


def verify_base_model(base: BaseModel) -> None:
    """Check the files of a base model against the digests that it was registered with.

    Raises StorageUnavailable where the folder cannot be read here now, and InvalidBaseModel where a file differs.
    """
    folder = Path(base.path)
    away = (
        f"the folder of the base model {base.name!r} cannot be read on this machine; mount it or restore it"
    )
    if not folder.is_dir():
        raise StorageUnavailable(away)
    try:
        _, found = inspect_folder(folder)
    except OSError as error:
        raise StorageUnavailable(f"{away} ({error.strerror})") from error
    for name in sorted(base.files.keys() | found.keys()):
        if base.files.get(name) != found.get(name):
            raise InvalidBaseModel(
                f"{name} of the base model {base.name!r} is not what was registered; restore it, or register the"
                " folder anew under another name"
            )


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_safetensors(path: Path, name: str) -> None:
    with path.open("rb") as file:
        try:
            check_safetensors(file, path.stat().st_size)
        except ValueError as error:
            raise InvalidBaseModel(
                f"{name} is not a safetensors file that is loaded, whatever its name says: {error}"
            ) from None


def _check_json(path: Path, name: str) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        # Vocabularies are large and may hold any word as a key; only configurations are searched.
        configures = name in ("config.json", "tokenizer_config.json", "generation_config.json")
        why = why_refused(content) if configures else None
    except (ValueError, RecursionError) as error:
        raise InvalidBaseModel(f"{name} is not JSON: {error}") from None
    if configures and not isinstance(content, dict):
        raise InvalidBaseModel(f"{name} is not a JSON object")
    if why is not None:
        raise InvalidBaseModel(f"{name}, {why}")
