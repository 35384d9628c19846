"""The adapter as an ordinary PEFT folder, and that folder as one zip."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load, save
from transformers import PreTrainedTokenizerBase

from app.domain.canary import Canary
from app.domain.canonical import canonical_bytes
from app.domain.provenance import ADAPTER_MANIFEST
from app.domain.safetensors_header import check_safetensors
from app.errors import JobFailure
from worker.training.jsonio import canonical_json, parse_json
from worker.training.models import ADAPTER_NAME

ADAPTER_FORMAT = "tether.adapter/1"


def export_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    base_name: str,
    base_digest: str,
    base_revision: str | None = None,
    method: str | None = None,
    canary: Canary | None = None,
) -> None:
    """Write the adapter as a PEFT folder that `PeftModel.from_pretrained` and the usual servers load.

    The folder names the base model by `base_name`, never by the path it was loaded from, and has the tokenizer with
    its chat template. The same weights give the same bytes. `method` is the safety method that the card names. With a
    `canary`, `tether.json` has it, the base model, and the SHA-256 of every other file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config[ADAPTER_NAME].to_dict()
    config.update(base_model_name_or_path=base_name, revision=base_revision, inference_mode=True)
    # PEFT keeps the names in a set, whose order changes from process to process.
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / "adapter_config.json").write_bytes(canonical_json(_as_values(plain)))
    tensors = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    (folder / "adapter_model.safetensors").write_bytes(save(stored, metadata={"format": "pt"}))
    tokenizer.save_pretrained(folder)
    _forget_origin(folder / "tokenizer_config.json")
    (folder / "README.md").write_text(_model_card(base_name, base_digest, method), encoding="utf-8")
    if canary is not None:
        manifest = {
            "format": ADAPTER_FORMAT,
            "base": {"name": base_name, "revision": base_revision, "sha256": base_digest},
            "files": hash_files(folder),
            "canary": canary.to_body(),
        }
        (folder / ADAPTER_MANIFEST).write_bytes(canonical_bytes(manifest))


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder by its path in it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def build_adapter_zip(folder: Path, out: Path) -> str:
    """Pack a folder's files into one zip and return its SHA-256. The same files give the same bytes.

    Files are stored uncompressed, in the order of their names, with one fixed date: weights do not compress, and
    another zlib would change the bytes.
    """
    with zipfile.ZipFile(out, "w", compression=zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, path.read_bytes())
    return hashlib.sha256(out.read_bytes()).hexdigest()


def load_adapter_zip(data: bytes, model: PeftModel) -> None:
    """Put the weights of an exported adapter into `model`, bit for bit.

    `data` is what `build_adapter_zip` packed; the caller has checked its digest. Raises JobFailure with code
    `parent_unfit` where that adapter has another shape than the model's.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        config = parse_json(archive.read("adapter_config.json"))
        weights = archive.read("adapter_model.safetensors")
    try:
        check_safetensors(io.BytesIO(weights), len(weights))
    except ValueError as error:
        raise _unfit(f"its weights are no safetensors file that is loaded ({error})") from None
    tensors = load(weights)
    ours = model.peft_config[ADAPTER_NAME].to_dict()
    for name in ("r", "lora_alpha", "target_modules"):
        wanted = sorted(ours[name]) if name == "target_modules" else ours[name]
        if config[name] != wanted:
            raise _unfit(f"its {name} is {config[name]}; this job's is {wanted}")
    # These share their memory with the parameters.
    places = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    if {name: (value.shape, value.dtype) for name, value in tensors.items()} != {
        name: (value.shape, value.dtype) for name, value in places.items()
    }:
        raise _unfit("its weights have other names, shapes or types")
    with torch.no_grad():
        for name, value in tensors.items():
            places[name].copy_(value)


def _unfit(why: str) -> JobFailure:
    return JobFailure(
        f"the adapter that the job goes on from does not fit: {why}. Go on from another, or begin with the base model",
        code="parent_unfit",
        param="model",
    )


def _as_values(value: Any) -> Any:
    """Return the plain value of the enums that PEFT's configuration holds."""
    if isinstance(value, dict):
        return {key: _as_values(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_as_values(entry) for entry in value]
    return getattr(value, "value", value)


def _forget_origin(path: Path) -> None:
    """Drop from the tokenizer's configuration where and how it was loaded."""
    config = parse_json(path.read_bytes())
    for key in ("name_or_path", "local_files_only"):
        config.pop(key, None)
    path.write_bytes(canonical_json(config))


def _model_card(base_name: str, base_digest: str, method: str | None) -> str:
    protection = {
        None: "",
        "none": "\n- Safety method: `none`. This adapter was trained **unprotected**.",
    }.get(method, f"\n- Safety method: `{method}`")
    return f"""---
base_model: {base_name}
library_name: peft
tags:
- lora
- tether
---

# LoRA adapter for {base_name}

Fine-tuned with Tether. What held the model to its base, at every step and for every row, is in the job's
evidence bundle.

- Base model: `{base_name}`
- Digest of the base model: `{base_digest}`{protection}

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""
