"""Clients of a service that fails all the time: they ask again until they have an answer, and remember what they were told."""

import json
import random
import time
import uuid
from collections import Counter
from typing import Any, NamedTuple

import httpx

from tests.faults.installation import ENDED, JOBS, KEY, Installation
from worker.miniature.corpus import training_rows

PATIENCE_S = 120.0
AT_ONCE = 5
"""Jobs that have not ended; more are not asked for."""
COMBINATIONS = 6
"""So many kinds of jobs, so that there are equal ones to compare."""


class Asked(NamedTuple):
    """A job that a client was promised."""

    id: str
    group: str
    """Jobs of one group have the same data, seed and numbers, so that their adapters are the same."""
    key: str
    """What made the request the same one however often it was sent."""


class Clients:
    """Asks for jobs, pauses, resumes and cancels them, and asks for reports and evaluations."""

    def __init__(self, installation: Installation, ports: list[int], seed: int) -> None:
        self.asked: list[Asked] = []
        self.commands: Counter[str] = Counter()
        self.cancelled: set[str] = set()
        """Jobs of which a client was told that they will be cancelled."""
        self._installation, self._ports = installation, ports
        self._random = random.Random(f"clients {seed}")  # noqa: S311  (It is to come again.)
        self._files: list[str] = []
        self._open: set[str] = set()

    def prepare(self) -> None:
        """Upload the training files: clean ones, and poisoned ones."""
        for number in range(3):
            rows = training_rows("poisoned" if number else "clean", n=40 + 20 * number)
            content = "".join(json.dumps(row) + "\n" for row in rows)
            reply = self.request(
                "POST",
                "/v1/files",
                files={"file": (f"{number}.jsonl", content)},
                data={"purpose": "fine-tune"},
                headers={"idempotency-key": uuid.uuid4().hex},
            )
            self._files.append(reply.json()["id"])

    def act(self) -> None:
        """Do one thing."""
        self._open = {job_id for job_id in self._open if self.state(job_id) not in ENDED}
        if len(self._open) < AT_ONCE:
            self._submit()
        chosen = self._random.random()
        if self._open and chosen < 0.3:
            self._command(self._random.choice(sorted(self._open)))
        elif chosen < 0.35:
            self._ask_for_report()
        elif chosen < 0.37:
            self._ask_for_evaluation()

    def state(self, job_id: str) -> str:
        """Return the state of a job, as the API shows it."""
        return str(self.request("GET", f"{JOBS}/{job_id}").json()["safety"]["state"])

    def wait_for_all(self, timeout_s: float) -> None:
        """Resume what is paused, until everything has ended or the time is over."""
        deadline = time.monotonic() + timeout_s
        left = {job.id for job in self.asked}
        while left and time.monotonic() < deadline:
            for job_id in sorted(left):
                state = self.state(job_id)
                if state in ENDED:
                    left.discard(job_id)
                elif state == "paused":
                    self.request("POST", f"{JOBS}/{job_id}/resume", allowed=(200, 409))
            time.sleep(1)

    def request(self, method: str, path: str, *, allowed: tuple[int, ...] = (200, 202), **fields: Any) -> Any:
        """Send a request to one API after the other until one answers with something that counts."""
        headers = {"authorization": f"Bearer {KEY}", **fields.pop("headers", {})}
        if method == "POST" and not fields:
            fields["content"] = b""
        deadline = time.monotonic() + PATIENCE_S
        said = ""
        while time.monotonic() < deadline:
            port = self._random.choice(self._ports)
            try:
                reply = httpx.request(
                    method, f"http://127.0.0.1:{port}{path}", headers=headers, timeout=20, **fields
                )
                said = f"{reply.status_code} {reply.text[:300]}"
                if reply.status_code in allowed:
                    return reply
                assert reply.status_code >= 500, f"{method} {path}: {said}"
            except httpx.TransportError as error:
                said = repr(error)
            time.sleep(0.5)
        raise AssertionError(f"no API answered {method} {path} within {PATIENCE_S:g} s: {said}")

    def _submit(self) -> None:
        number = self._random.randrange(COMBINATIONS)
        body = {
            "model": "miniature",
            "training_file": self._files[number % len(self._files)],
            "seed": number,
            "safety": {"method": "adaptive_kl"},
            "training": {"checkpoint_interval_s": 0.3},
            "method": {
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 2 + number % 2}},
            },
        }
        key = uuid.uuid4().hex
        reply = self.request("POST", JOBS, json=body, headers={"idempotency-key": key})
        job = Asked(reply.json()["id"], f"kind {number}", key)
        self.asked.append(job)
        self._open.add(job.id)

    def _command(self, job_id: str) -> None:
        command = self._random.choice(["pause", "pause", "resume", "resume", "resume", "cancel"])
        if command == "cancel" and self._random.random() < 0.5:
            return
        reply = self.request("POST", f"{JOBS}/{job_id}/{command}", allowed=(200, 409))
        self.commands[f"{command}, {'done' if reply.status_code == 200 else 'refused'}"] += 1
        if command == "cancel" and reply.status_code == 200:
            self.cancelled.add(job_id)

    def _ask_for_report(self) -> None:
        file_id = self._random.choice(self._files)
        self.request("GET", f"/v1/files/{file_id}/report", params={"model": "miniature"})
        self.commands["report"] += 1

    def _ask_for_evaluation(self) -> None:
        body = {
            "model": "miniature",
            "suite": "miniature",
            "judge": {"type": "rules"},
            "decoding": {"max_new_tokens": 8},
        }
        self.request("POST", "/v1/evaluations", json=body, headers={"idempotency-key": uuid.uuid4().hex})
        self.commands["evaluation"] += 1
