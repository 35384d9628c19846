"""A text classifier as judge: a local Hugging Face directory of the operator's, which reads prompt and reply.

Only safetensors are loaded, and no code of the directory's own. A reply that is longer than the classifier reads is
shown to it in overlapping pieces, of which the worst counts: a classifier that silently cuts is blind to what comes late.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from app.base_models.service import inspect_folder
from app.domain.ledger import digest_of
from app.errors import InvalidBaseModel
from worker.evaluation.judging import Progress, Question, Verdict
from worker.training.models import detach_from_files, open_private

BATCH = 32
OVERLAP_TOKENS = 16
"""What two pieces share, so that nothing is hidden by a cut."""
MIN_TOKENS = 4 * OVERLAP_TOKENS
DEFAULT_MAX_TOKENS = 512
"""Where neither the tokenizer nor the model says how much can be read."""


Encoded = dict[str, list[int]]
"""The inputs of the model for one piece, by name."""


class Classifier:
    """Gives a verdict where the probability of the harmful labels is at least the threshold."""

    type = "classifier"

    def __init__(
        self, folder: Path, *, harmful_labels: Sequence[str], threshold: float, device: torch.device
    ) -> None:
        """Load a folder. Raises InvalidBaseModel where it has code, pickles, or not these labels."""
        config, files = inspect_folder(folder)
        disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here.
        with open_private(folder, files) as private:
            try:
                model = AutoModelForSequenceClassification.from_pretrained(
                    private, local_files_only=True, trust_remote_code=False, use_safetensors=True
                )
                self._tokenizer = AutoTokenizer.from_pretrained(
                    private, local_files_only=True, trust_remote_code=False
                )
            except (OSError, ValueError, KeyError) as error:
                raise InvalidBaseModel(
                    f"{folder.name} could not be loaded as a text classifier: {error}"
                ) from error
            model = detach_from_files(cast(Any, model).to(device))
        labels = {str(name): int(place) for place, name in model.config.id2label.items()}
        unknown = [name for name in harmful_labels if name not in labels]
        if unknown or not harmful_labels or len(harmful_labels) == len(labels):
            raise InvalidBaseModel(
                f"the classifier in {folder.name} has the labels {', '.join(labels)}; TETHER_CLASSIFIER_HARMFUL_LABELS must"
                f" name some of them and not all, and names {', '.join(harmful_labels) or 'none'}"
            )
        self._model = model.eval()
        self._harmful = [labels[name] for name in harmful_labels]
        self._threshold = threshold
        self._device = device
        self._max_tokens = _find_max_tokens(self._tokenizer, config)
        if self._tokenizer.pad_token_id is None:
            raise InvalidBaseModel(f"the tokenizer of the classifier in {folder.name} has no pad token")
        if not self._tokenizer.is_fast or self._max_tokens < MIN_TOKENS:
            raise InvalidBaseModel(
                f"the classifier in {folder.name} reads {self._max_tokens} tokens, by a"
                f" {'fast' if self._tokenizer.is_fast else 'slow'} tokenizer; it needs to read {MIN_TOKENS} at least, by a"
                " fast one (tokenizer.json)"
            )
        self.sha256 = digest_of(
            {
                "judge": "classifier",
                "files": files,
                "harmful": sorted(harmful_labels),
                "threshold": threshold,
                "max_tokens": self._max_tokens,
            }
        )

    def judge(self, questions: Sequence[Question], on_progress: Progress) -> list[Verdict | None]:
        """Return a verdict on each reply; None where a probability is not a number."""
        worst = [0.0] * len(questions)
        pieces = [(place, piece) for place, each in enumerate(questions) for piece in self._pieces(each)]
        for start in range(0, len(pieces), BATCH):
            chosen = pieces[start : start + BATCH]
            read = self._read([piece for _, piece in chosen])
            for (place, _), probability in zip(chosen, read, strict=True):
                # A comparison with NaN is false, and would hide it.
                worst[place] = probability if not probability <= worst[place] else worst[place]
            on_progress()
        return [None if math.isnan(p) else Verdict(harmful=p >= self._threshold) for p in worst]

    @torch.no_grad()
    def _read(self, pieces: Sequence[Encoded]) -> list[float]:
        """Return the probability of the harmful labels for each piece."""
        batch = self._tokenizer.pad(list(pieces), return_tensors="pt").to(self._device)
        probabilities = self._model(**batch).logits.double().softmax(dim=-1)
        found: list[float] = probabilities[:, self._harmful].sum(dim=-1).tolist()
        return found

    def _pieces(self, question: Question) -> list[Encoded]:
        """Return prompt and reply as a pair, encoded, in as many overlapping pieces as the reply needs."""
        prompt = "\n".join(str(message["content"]) for message in question.row["messages"])
        encoded = self._tokenizer(
            self._end_of(prompt),
            question.reply,
            truncation="only_second",
            max_length=self._max_tokens,
            stride=OVERLAP_TOKENS,
            return_overflowing_tokens=True,
            split_special_tokens=True,
        )
        # Whatever else the tokenizer gives, such as the types of tokens, belongs to the model's inputs.
        names = [name for name in self._tokenizer.model_input_names if name in encoded]
        return [{name: encoded[name][piece] for name in names} for piece in range(len(encoded["input_ids"]))]

    def _end_of(self, prompt: str) -> str:
        """Return so much of the prompt's end as leaves half of the room to the reply."""
        spans = self._tokenizer(
            prompt, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )["offset_mapping"]
        room = self._max_tokens // 2
        return prompt if len(spans) <= room else prompt[spans[-room][0] :]


def _find_max_tokens(tokenizer: Any, config: dict[str, Any]) -> int:
    # Tokenizers without a limit have an astronomic number for it.
    known = [
        int(value)
        for value in (tokenizer.model_max_length, config.get("max_position_embeddings"))
        if value and value < 10**6
    ]
    return min(known, default=DEFAULT_MAX_TOKENS)
