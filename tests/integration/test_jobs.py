"""/v1/fine_tuning/jobs over HTTP, up to the moment when a worker would take the job."""

import hashlib
import json
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import delete, select, update

from app.critics.service import request_fit
from app.database import Database, read_only, unit_of_work
from app.domain.rubric import judge_digest
from app.domain.safety_spec import AdaptiveKL, CombinedCritic, JudgeCritic
from app.domain.training_spec import Hyperparameters, TrainingOptions, resolve
from app.domain.verify import verify_bundle
from app.models.base import new_id, utc_now
from app.models.base_model import BaseModel, Critic
from app.models.file import File
from app.models.job import Checkpoint, Job, LedgerLeaf, Step
from app.models.safety_set import SafetySet
from app.models.work import Work
from app.reconciler import reconcile
from app.safety_sets.service import Rows, add_set
from tests.integration.conftest import MODEL, Tenant, jsonl, refused, unlike_any_other
from tests.integration.test_files import run_worker
from tests.integration.wire_schema import check_wire
from tests.support import collect, tampering

PATH = "/v1/fine_tuning/jobs"


def leaves(tenant: Tenant, job_id: str) -> list[dict[str, Any]]:
    """Return the records of a job."""
    with read_only(tenant.server.database) as session:
        rows = session.scalars(
            select(LedgerLeaf.leaf).where(LedgerLeaf.work_id == job_id).order_by(LedgerLeaf.seq)
        )
        return [json.loads(leaf) for leaf in rows]


def kinds(tenant: Tenant, job_id: str) -> list[str]:
    """Return the kind of each record of a job."""
    return [leaf["t"].removeprefix("tether.").partition("/")[0] for leaf in leaves(tenant, job_id)]


def set_work(tenant: Tenant, job_id: str, **values: Any) -> None:
    """Change a row of work as its owner would."""
    with unit_of_work(tenant.server.database) as session:
        session.execute(update(Work).where(Work.id == job_id).values(**values))


def add_critic(tenant: Tenant, category: str, **fields: Any) -> str:
    """Register a critic as if one had been fitted for a harm category, before that of the base model, and return its id."""
    with unit_of_work(tenant.server.database) as session:
        base = session.get_one(BaseModel, MODEL)
        numbers = {"low": -2.0, "high": 3.0, "threshold": 0.5, "base_digest": base.digest, **fields}
        critic = Critic(
            id=new_id("critic_"),
            base_model=base.name,
            category=category,
            digest=hashlib.sha256(category.encode()).hexdigest(),
            files={},
            report={"auroc": 0.75, "tpr_at_1_percent_fpr": 0.5},
            created_at=utc_now() - timedelta(days=1),
            **numbers,
        )
        session.add(critic)
        return critic.id


class TestCreateJob:
    def test_defaults_are_resolved_and_sent_back(self, tenant: Tenant) -> None:
        job = tenant.create_job(training_file=tenant.upload(*(unlike_any_other() for _ in range(300))))
        check_wire("FineTuningJob", job)
        assert job["id"].startswith("ftjob-")
        assert (job["status"], job["model"]) == ("queued", MODEL)
        # How each number is found is test_training_spec's; here it must arrive, and nothing may stay open.
        spec = resolve(
            hyperparameters=Hyperparameters(),
            options=TrainingOptions(),
            safety=AdaptiveKL(),
            seed=job["seed"],
            rows=300,
            hidden_size=64,
            max_position_embeddings=512,
            critic_threshold=0.5,
        )
        assert job["hyperparameters"] == {
            name: getattr(spec, name) for name in ("batch_size", "learning_rate_multiplier", "n_epochs")
        }
        assert job["method"] == {
            "type": "supervised",
            "supervised": {"hyperparameters": job["hyperparameters"]},
        }
        resolved = {**spec.training(), "steps_completed": 0, "total_steps": None}
        assert resolved.items() <= job["training"].items()
        assert "auto" not in resolved.values()
        safety = job["safety"]
        chosen = {"critic", "anchors", "monitor", "threshold"}
        assert safety.items() >= AdaptiveKL().model_dump(exclude=chosen).items()
        # The threshold of the critic, 0.5 between its points -2 and 3, as s.
        assert safety["threshold"] == 0.5
        assert safety["anchors"] == {"id": safety["monitor"]["id"], "weight": 2.0, "per_step": 4}
        assert safety["anchors"]["id"].startswith("set_")
        assert safety["critic"]["type"] == "activation"
        assert safety["critic"]["id"].startswith("critic_")
        assert safety["critic"]["quality"] == {"auroc": 0.97, "tpr_at_1_percent_fpr": 0.88}
        assert (safety["state"], safety["protected"], safety["attempts"]) == ("queued", True, 0)
        assert 0 <= job["seed"] < 2**31
        for field in ("error", "finished_at", "fine_tuned_model", "trained_tokens", "validation_file"):
            assert job[field] is None
        assert tenant.get(f"{PATH}/{job['id']}") == job

    def test_through_the_client(self, tenant: Tenant) -> None:
        created = tenant.openai.fine_tuning.jobs.create(
            model=MODEL,
            training_file=tenant.upload(),
            validation_file=tenant.upload(),
            suffix="mine",
            seed=7,
            metadata={"team": "red"},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
            extra_body={"safety": {"method": "fixed_kl", "beta": 0.4}, "training": {"lora_r": 4}},
        )
        assert (created.seed, created.metadata) == (7, {"team": "red"})
        assert created.hyperparameters.n_epochs == 2
        found: Any = tenant.openai.fine_tuning.jobs.retrieve(created.id)
        assert (found.safety["method"], found.safety["beta"]) == ("fixed_kl", 0.4)
        assert found.training["lora_r"] == 4
        check_wire("FineTuningJob", tenant.get(f"{PATH}/{created.id}"))

    def test_strict_client_accepts_the_answers(self, tenant: Tenant) -> None:
        with openai.OpenAI(
            api_key=tenant.key,
            base_url=f"{tenant.server.url}/v1",
            max_retries=0,
            _strict_response_validation=True,
        ) as client:
            created = client.fine_tuning.jobs.create(model=MODEL, training_file=tenant.upload())
            assert client.fine_tuning.jobs.list().data == [client.fine_tuning.jobs.retrieve(created.id)]
            assert len(client.fine_tuning.jobs.list_events(created.id).data) == 2
            assert client.fine_tuning.jobs.cancel(created.id).status == "cancelled"

    def test_null_means_absent(self, tenant: Tenant) -> None:
        nulls = dict.fromkeys(
            [
                "validation_file",
                "suffix",
                "seed",
                "metadata",
                "integrations",
                "method",
                "hyperparameters",
                "safety",
                "training",
            ]
        )
        file_id = tenant.upload()
        with_nulls = tenant.create_job(training_file=file_id, **nulls)
        without = tenant.create_job(training_file=file_id)
        inside = tenant.create_job(
            training_file=file_id,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": None}}},
            training={"lora_r": None, "learning_rate": None},
            safety={"method": "adaptive_kl", "beta_min": None, "critic": None},
        )
        for job in (with_nulls, inside):
            for field in ("hyperparameters", "training", "safety", "metadata", "validation_file"):
                assert job[field] == without[field]

    def test_empty_integrations_are_none(self, tenant: Tenant) -> None:
        assert tenant.create_job(integrations=[])["integrations"] == []

    def test_deprecated_hyperparameters_still_count(self, tenant: Tenant) -> None:
        job = tenant.create_job(hyperparameters={"n_epochs": 3, "batch_size": "auto"})
        assert job["hyperparameters"]["n_epochs"] == 3
        assert job["method"]["supervised"]["hyperparameters"]["n_epochs"] == 3

    @pytest.mark.parametrize(
        ("fields", "param", "code"),
        [
            ({"model": "unknown"}, "model", "model_not_found"),
            ({"model": None}, "model", "invalid_request"),
            ({"n_epochs": 3}, "n_epochs", "invalid_request"),
            ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "invalid_request"),
            ({"hyperparameters": {"n_epoch": 5}}, "hyperparameters.n_epoch", "invalid_request"),
            ({"training": {"lora_r": "big"}}, "training.lora_r", "invalid_request"),
            ({"training": {"max_seq_length": 513}}, "training.max_seq_length", "invalid_request"),
            ({"safety": "lax"}, "safety", "invalid_request"),
            ({"safety": {"method": "magic"}}, "safety.method", "invalid_request"),
            ({"safety": {"method": "vaccine"}}, "safety.alignment_file", "safety_set_not_found"),
            ({"safety": {"method": "antidote"}}, "safety.alignment_file", "safety_set_not_found"),
            (
                {"safety": {"method": "lisa", "alignment_file": "set_x"}},
                "safety.alignment_file",
                "safety_set_not_found",
            ),
            (
                {"safety": {"method": "adaptive_kl", "anchors": {"id": "set_x"}}},
                "safety.anchors.id",
                "safety_set_not_found",
            ),
            (
                {"safety": {"method": "adaptive_kl", "monitor": {"id": "set_x"}}},
                "safety.monitor.id",
                "safety_set_not_found",
            ),
            (
                {"safety": {"method": "none", "monitor": {"id": "set_x"}}},
                "safety.monitor.id",
                "safety_set_not_found",
            ),
            ({"safety": {"method": "adaptive_kl", "scope": "batch"}}, "safety", "invalid_request"),
            ({"safety": {"method": "filter", "anchors": {"weight": 0}}}, "safety.anchors.weight", None),
            (
                {"safety": {"method": "filter", "critic": {"type": "judge"}}},
                "safety.critic",
                "judge_not_configured",
            ),
            ({"safety": {"beta_min": 0.1}}, "safety.method", "invalid_request"),
            (
                {"safety": {"method": "adaptive_kl", "beta_min": 0.9, "beta_max": 0.1}},
                "safety",
                "invalid_request",
            ),
            ({"safety": {"method": "fixed_kl", "beta": 2}}, "safety.beta", "invalid_request"),
            (
                {"safety": {"method": "adaptive_kl", "critic": {"type": "activation", "id": "critic_x"}}},
                "safety.critic.id",
                "critic_not_found",
            ),
            ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations[0].type", None),
            ({"suffix": "a b"}, "suffix", "invalid_request"),
            ({"seed": -1}, "seed", "invalid_request"),
            ({"method": {"type": "magic"}}, "method.type", "invalid_request"),
        ],
    )
    def test_wrong_field_is_named_and_nothing_is_created(
        self, tenant: Tenant, fields: dict[str, Any], param: str, code: str | None
    ) -> None:
        message = refused(tenant.post_job(**fields), 400, param=param, code=code)
        assert message.startswith(param.rpartition(".")[0])
        assert tenant.get(PATH)["data"] == []

    def test_unknown_model_names_the_known_ones(self, tenant: Tenant) -> None:
        message = tenant.post_job(model="gpt-4o").json()["error"]["message"]
        known = message.partition("base models: ")[2].split(", ")
        # Other tests may have registered base models of their own on this server.
        assert MODEL in known, message

    @pytest.mark.parametrize("param", ["training_file", "validation_file"])
    def test_file_that_is_not_there(self, tenant: Tenant, param: str) -> None:
        message = refused(tenant.post_job(**{param: "file-nothing"}), 404, param=param, code="file_not_found")
        assert message.startswith(param)
        assert tenant.get(PATH)["data"] == []

    def test_file_that_was_deleted_is_not_found(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        tenant.openai.files.delete(file_id)
        refused(tenant.post_job(training_file=file_id), 404, param="training_file", code="file_not_found")

    def test_presets(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        strict = tenant.create_job(training_file=file_id, safety="strict")["safety"]
        assert (strict["method"], strict["beta_max"], strict["protected"]) == ("adaptive_kl", 1.0, True)
        off = tenant.create_job(training_file=file_id, safety="off")["safety"]
        assert (off["method"], off["protected"]) == ("none", False)
        paper = tenant.create_job(training_file=file_id, safety="paper")["safety"]
        assert (paper["scope"], paper["anchors"], paper["replay"]) == ("batch", None, False)
        # The threshold in log-odds, as a probability.
        assert paper["threshold"] == 1 / (1 + math.exp(-0.5))
        anchored = tenant.create_job(training_file=file_id, safety={"method": "none", "anchors": {}})[
            "safety"
        ]
        assert anchored["protected"] is True

    def test_unprotected_job_is_still_measured(self, tenant: Tenant) -> None:
        safety = tenant.create_job(safety={"method": "none"})["safety"]
        assert safety["critic"]["id"].startswith("critic_")

    def test_model_without_a_critic_needs_one_or_another_method(self, own_server: Any) -> None:
        tenant = own_server()
        with unit_of_work(tenant.server.database) as session:
            session.connection().exec_driver_sql("DELETE FROM critics")
        message = refused(tenant.post_job(), 400, param="safety.critic", code="critic_not_found")
        assert "tether critics fit" in message
        fixed = tenant.create_job(safety={"method": "fixed_kl", "beta": 0.5})
        assert fixed["safety"]["critic"] is None
        constant = {"method": "adaptive_kl", "critic": {"type": "constant", "s": 0.5}}
        assert tenant.create_job(safety=constant)["safety"]["critic"] == {"type": "constant", "s": 0.5}
        # Nobody is told to fit one while one is being fitted, as at the first start of a server.
        with unit_of_work(tenant.server.database) as session:
            request_fit(session, base_name=MODEL, data_sha256="a" * 64)
        message = refused(tenant.post_job(), 400, param="safety.critic", code="critic_not_found")
        assert "is still being fitted" in message

    def test_critic_from_before_thresholds_needs_one_from_the_request(self, own_server: Any) -> None:
        tenant = own_server()
        with unit_of_work(tenant.server.database) as session:
            session.execute(update(Critic).values(threshold=None))
        for method in ("adaptive_kl", "filter"):
            message = refused(tenant.post_job(safety={"method": method}), 400, param="safety.threshold")
            assert "fit it anew" in message
            assert (
                tenant.create_job(safety={"method": method, "threshold": 0.7})["safety"]["threshold"] == 0.7
            )
        assert tenant.create_job(safety="off")["safety"]["critic"]["type"] == "activation"

    def test_model_without_anchors_needs_some_or_a_job_without(self, own_server: Any) -> None:
        tenant = own_server()
        with unit_of_work(tenant.server.database) as session:
            session.execute(delete(SafetySet))
        message = refused(tenant.post_job(), 400, param="safety.anchors", code="safety_set_not_found")
        assert message.endswith(
            f"register the 96 prompts that come with Tether with: tether models add {MODEL} PATH (run again), or your"
            f" own with: tether anchors add --base {MODEL} --data FILE"
        )
        monitored = {"method": "adaptive_kl", "anchors": None}
        refused(tenant.post_job(safety=monitored), 400, param="safety.monitor", code="safety_set_not_found")
        safety = tenant.create_job(safety={**monitored, "monitor": None})["safety"]
        assert (safety["anchors"], safety["monitor"], safety["protected"]) == (None, None, True)

    def test_newest_sets_are_pinned_and_on_record(self, own_server: Any) -> None:
        tenant = own_server()
        with unit_of_work(tenant.server.database) as session:
            base = session.get_one(BaseModel, MODEL)
            added = {
                kind: add_set(session, base, kind, Rows(digit * 64, 20)).id
                for kind, digit in (("alignment", "5"), ("harmful", "6"), ("anchors", "7"))
            }
        for method, kind, digit in (("lisa", "alignment", "5"), ("antidote", "harmful", "6")):
            job = tenant.create_job(safety={"method": method, "monitor": {}})
            assert job["safety"]["alignment_file"] == added[kind]
            assert job["safety"]["monitor"]["id"] == added["anchors"]
            assert job["safety"]["anchors"] is None
            body = leaves(tenant, job["id"])[0]["body"]
            assert body["alignment"] == {"id": added[kind], "sha256": digit * 64}
            assert body["anchors"] == {"id": added["anchors"], "sha256": "7" * 64}
        # A set of another kind is none.
        wrong = {"method": "vaccine", "alignment_file": added["harmful"]}
        message = refused(tenant.post_job(safety=wrong), 400, param="safety.alignment_file")
        assert "tether alignment add" in message
        assert "--kind safe" in message

    def test_judge_is_the_operators(self, own_server: Any) -> None:
        tenant = own_server(judge_url="http://127.0.0.1:1/v1", judge_model="gpt-oss-20b")
        job = tenant.create_job(safety={"method": "filter", "critic": {"type": "judge", "votes": 3}})
        critic = job["safety"]["critic"]
        assert (critic["type"], critic["votes"], job["safety"]["threshold"]) == ("judge", 3, 0.5)
        assert critic["fallback"].startswith("critic_")
        parts = [{"type": "activation"}, {"type": "judge"}]
        combined = tenant.create_job(
            safety={"method": "adaptive_kl", "critic": {"type": "combined", "critics": parts}}
        )
        first, second = combined["safety"]["critic"]["critics"]
        assert first["id"] == second["fallback"] == critic["fallback"]
        assert first["quality"]["auroc"] == 0.97
        assert "quality" not in second
        recorded = [leaves(tenant, each["id"])[0]["body"]["critic"] for each in (job, combined)]
        assert [each["id"] for each in recorded] == ["judge", "combined"]
        # What names a critic is decided by its fields, its parts and the operator's model.
        fallback = "c" * 64
        judge = judge_digest(JudgeCritic(votes=3).digest(fallback), "gpt-oss-20b")
        part = judge_digest(JudgeCritic().digest(fallback), "gpt-oss-20b")
        chosen = CombinedCritic.model_validate({"critics": parts})
        assert [each["sha256"] for each in recorded] == [judge, chosen.digest([fallback, part])]
        assert [[each["low"] for each in body["fitted"]] for body in recorded] == [[-2.0], [-2.0]]
        curve = tenant.get(f"{PATH}/{combined['id']}/risk")
        assert curve["critic"]["type"] == "combined"

    def test_critics_of_several_categories_are_pinned_and_on_record(self, own_server: Any) -> None:
        tenant = own_server(judge_url="http://127.0.0.1:1/v1", judge_model="m")
        bias = add_critic(tenant, "bias", low=-1.0, high=4.0, threshold=2.0)
        parts = [{"type": "judge"}, {"type": "activation", "category": "bias"}, {"type": "activation"}]
        critic = {"type": "combined", "critics": parts, "rule": "weighted", "weights": [0.5, 0.3, 0.2]}
        job = tenant.create_job(safety={"method": "adaptive_kl", "critic": critic})
        judge, second, third = job["safety"]["critic"]["critics"]
        assert (second["id"], second["category"], third["category"]) == (bias, "bias", "harm")
        # A judge falls back on the first critic that it is combined with.
        assert judge["fallback"] == bias
        assert [each["quality"]["auroc"] for each in (second, third)] == [0.75, 0.97]
        assert job["safety"]["threshold"] == pytest.approx(0.5 * 0.5 + 0.3 * 0.6 + 0.2 * 0.5)
        (recorded,) = leaves(tenant, job["id"])
        fitted = recorded["body"]["critic"]["fitted"]
        assert [(each["id"], each["low"], each["high"], each["threshold"]) for each in fitted] == [
            (bias, -1, 4, 2),
            (third["id"], -2, 3, 0.5),
        ]
        # A list of jobs and a job alone show the same.
        assert (
            tenant.get(PATH)["data"][0]["safety"]
            == tenant.get(f"{PATH}/{job['id']}")["safety"]
            == job["safety"]
        )
        assert [job["safety"]["critic"]["weights"], job["safety"]["critic"]["rule"]] == [
            [0.5, 0.3, 0.2],
            "weighted",
        ]

    @pytest.mark.parametrize(
        ("change", "param", "words"),
        [
            (
                {"critics": [{"id": "critic_x"}, {"category": "bias"}]},
                "safety.critic.critics[0].id",
                "'critic_x' is not one",
            ),
            (
                {"critics": [{"category": "bias"}, {"id": "OTHER"}]},
                "safety.critic.critics[1].id",
                "is not one",
            ),
            (
                {"critics": [{"category": "bias"}, {"id": "BIAS"}]},
                "safety.critic.critics[1]",
                "same activation critic",
            ),
            (
                {"critics": [{}, {"id": "BIAS", "category": "untruth"}]},
                "safety.critic.critics[1].category",
                "is of the category 'bias', not 'untruth'",
            ),
            ({"critics": [{}, {"category": "untruth"}]}, "safety.critic.critics[1]", "--category untruth"),
            ({"critics": [{}, {"category": "Untruth!"}]}, "safety.critic.critics[1].category", "pattern"),
            ({"critics": [{}, {}]}, "safety.critic", "twice"),
            ({"rule": "weighted"}, "safety.critic", "weights needs 2 numbers"),
            ({"rule": "weighted", "weights": [1.0]}, "safety.critic", "weights needs 2 numbers"),
            ({"rule": "weighted", "weights": [0.5, 0.25, 0.25]}, "safety.critic", "weights needs 2 numbers"),
            ({"rule": "weighted", "weights": [0.0, 1.0]}, "safety.critic.weights[0]", "greater than 0"),
            ({"rule": "weighted", "weights": [1.5, -0.5]}, "safety.critic.weights", None),
            ({"rule": "weighted", "weights": [0.5, 0.4]}, "safety.critic", "weights sum to 0.9"),
            ({"weights": [0.5, 0.5]}, "safety.critic", "weights are for the rule"),
        ],
        ids=str,
    )
    def test_a_combination_that_cannot_be_is_refused_by_name(
        self, own_server: Any, change: dict[str, Any], param: str, words: str | None
    ) -> None:
        tenant = own_server()
        names = {
            "BIAS": add_critic(tenant, "bias"),
            "OTHER": add_critic(tenant, "harm", base_digest="0" * 64),
        }
        critic: dict[str, Any] = {"type": "combined", "critics": [{}, {"category": "bias"}], **change}
        critic["critics"] = [
            {
                "type": "activation",
                **part,
                **({"id": names.get(part["id"], part["id"])} if "id" in part else {}),
            }
            for part in critic["critics"]
        ]
        reply = tenant.post_job(safety={"method": "adaptive_kl", "critic": critic})
        message = reply.json()["error"]["message"]
        assert reply.status_code == 400, message
        assert reply.json()["error"]["param"].startswith(param), reply.json()
        assert words is None or words in message
        assert tenant.get(PATH)["data"] == []

    @pytest.mark.parametrize("weight", ["nan", "inf"])
    def test_a_weight_that_is_no_number_is_refused(self, tenant: Tenant, weight: str) -> None:
        parts = [{"type": "activation"}, {"type": "constant", "s": 0.5}]
        critic = {"type": "combined", "critics": parts, "rule": "weighted", "weights": [float(weight), 0.5]}
        body = {"model": MODEL, "training_file": "file-x", "safety": {"method": "filter", "critic": critic}}
        reply = tenant.http.post(
            "/v1/fine_tuning/jobs", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] in ("safety.critic.weights[0]", None)

    def test_weights_below_the_operators_floor_are_refused(self, own_server: Any, tmp_path: Path) -> None:
        policy = tmp_path / "policy.toml"
        policy.write_text("[category_weights]\nharm = 0.5\n")
        tenant = own_server(policy_file=policy)
        bias = add_critic(tenant, "bias")
        harm = tenant.create_job()["safety"]["critic"]["id"]

        def post(*weights: float, first: str | None = harm) -> Any:
            parts = [{"type": "activation", "id": first}, {"type": "activation", "id": bias}]
            critic = {"type": "combined", "critics": parts, "rule": "weighted", "weights": weights}
            return tenant.post_job(safety={"method": "adaptive_kl", "critic": critic})

        # That the request names ids hides nothing: what counts is what the named critic measures.
        refused(post(0.25, 0.75), 400, param="safety.critic.weights", code="policy_violation")
        assert post(0.5, 0.5).status_code == 200
        alone = {"method": "adaptive_kl", "critic": {"type": "activation", "id": bias}}
        message = refused(tenant.post_job(safety=alone), 400, param="safety.critic", code="policy_violation")
        assert "'harm'" in message

    def test_first_record_says_what_was_asked_for(self, tenant: Tenant) -> None:
        job = tenant.create_job(seed=7, safety={"method": "fixed_kl", "beta": 0.4})
        (created,) = leaves(tenant, job["id"])
        assert created["t"] == "tether.job.created/4"
        body = created["body"]
        assert body["spec"]["seed"] == 7
        assert body["spec"]["safety"]["beta"] == 0.4
        assert body["critic"]["id"] == job["safety"]["critic"]["id"]
        (fitted,) = body["critic"]["fitted"]
        assert (fitted["id"], fitted["sha256"]) == (body["critic"]["id"], body["critic"]["sha256"])
        assert (fitted["low"], fitted["high"], fitted["threshold"]) == (-2, 3, 0.5)
        assert (body["anchors"], body["alignment"]) == (None, None)
        assert body["policy_sha256"] == tenant.server.app.state.policy[1]
        assert "hello" not in json.dumps(created)

    def test_job_is_announced_once_after_it_is_there(self, own_server: Any) -> None:
        tenant = own_server()
        job = tenant.create_job()
        (message,) = (tenant.server.settings.home / "queue").glob("*.gpu.msg")
        assert job["id"] in json.dumps(json.loads(message.read_text())["headers"])

    def test_broker_that_is_away_loses_no_job(self, own_server: Any) -> None:
        tenant = own_server(broker_url="redis://127.0.0.1:1/0")
        job = tenant.create_job()
        assert tenant.get(f"{PATH}/{job['id']}")["status"] == "queued"
        # When the broker is back, the reconciler announces what was not heard.
        set_work(tenant, job["id"], knocked_at_ms=0)
        knocks: list[tuple[str, str]] = []
        server = tenant.server
        reconcile(Database(server.database.engine, collect(knocks)), server.settings)
        assert knocks == [("gpu", job["id"])]


class TestPolicy:
    @pytest.fixture
    def tenant(self, own_server: Any, tmp_path: Path) -> Tenant:
        """A tenant of an operator who demands protection."""
        policy = tmp_path / "policy.toml"
        policy.write_text(
            'methods = ["adaptive_kl", "fixed_kl"]\nbeta_min_floor = 0.2\nbeta_max_floor = 0.9\n'
            'critic_types = ["activation"]\n'
        )
        started: Tenant = own_server(policy_file=policy)
        return started

    @pytest.mark.parametrize(
        ("safety", "param"),
        [
            ("off", "safety.method"),
            ({"method": "none"}, "safety.method"),
            ({"method": "adaptive_kl", "beta_min": 0.1}, "safety.beta_min"),
            ({"method": "adaptive_kl", "beta_min": 0.3, "beta_max": 0.8}, "safety.beta_max"),
            ({"method": "fixed_kl", "beta": 0.5}, "safety.beta"),
            (
                {"method": "adaptive_kl", "beta_min": 0.3, "critic": {"type": "constant", "s": 0}},
                "safety.critic.type",
            ),
            (None, "safety.beta_min"),
        ],
    )
    def test_less_than_the_floor_is_refused_by_the_name_of_the_field(
        self, tenant: Tenant, safety: Any, param: str
    ) -> None:
        refused(tenant.post_job(safety=safety), 400, param=param, code="policy_violation")
        assert tenant.get(PATH)["data"] == []

    def test_enough_is_accepted(self, tenant: Tenant) -> None:
        tenant.create_job(safety={"method": "adaptive_kl", "beta_min": 0.2, "beta_max": 0.9})


class TestListJobs:
    def test_pages_cover_everything_newest_first(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        ids = [tenant.create_job(training_file=file_id)["id"] for _ in range(5)][::-1]
        page = tenant.get(PATH, limit=2)
        check_wire("ListPaginatedFineTuningJobsResponse", page)
        assert ([job["id"] for job in page["data"]], page["has_more"]) == (ids[:2], True)
        assert [job.id for job in tenant.openai.fine_tuning.jobs.list(limit=2)] == ids
        assert tenant.get(PATH, after=ids[-1]) == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }

    def test_same_moment_does_not_lose_a_job(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        ids = [tenant.create_job(training_file=file_id)["id"] for _ in range(4)]
        with unit_of_work(tenant.server.database) as session:
            session.execute(update(Job).where(Job.id.in_(ids)).values(created_at=utc_now()))
        listed = [job.id for job in tenant.openai.fine_tuning.jobs.list(limit=1)]
        assert sorted(listed) == sorted(ids)

    def test_metadata_filters(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        labels: list[dict[str, str] | None] = [
            None,
            {"team": "red"},
            {"team": "red", "run": "1"},
            {"team": "blue", "a b.c[0]": "'; DROP TABLE jobs"},
        ]
        ids = [tenant.create_job(training_file=file_id, metadata=each)["id"] for each in labels]

        def found(metadata: dict[str, str]) -> list[str]:
            return [job.id for job in tenant.openai.fine_tuning.jobs.list(metadata=metadata)]

        assert found({"team": "red"}) == [ids[2], ids[1]]
        assert found({"team": "red", "run": "1"}) == [ids[2]]
        assert found({"team": "green"}) == []
        assert found({"nothing": "red"}) == []
        assert found({"a b.c[0]": "'; DROP TABLE jobs"}) == [ids[3]]

    def test_jobs_without_metadata_are_found(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        labels: list[dict[str, str] | None] = [None, {"team": "red"}, {}]
        ids = [tenant.create_job(training_file=file_id, metadata=each)["id"] for each in labels]
        assert [job["id"] for job in tenant.get(PATH, metadata="null")["data"]] == [ids[2], ids[0]]
        refused(tenant.http.get(PATH, params={"metadata": "red"}), 400, param="metadata")

    @pytest.mark.parametrize(
        "key",
        ['a"b', '"', "'", "a\\b", "\n", "é", "$", "$.a", "0", "]", ""],
        ids=[
            "quoted",
            "quote",
            "apostrophe",
            "backslash",
            "newline",
            "accent",
            "root",
            "path",
            "digit",
            "bracket",
            "empty",
        ],
    )
    def test_metadata_filter_finds_any_key(self, tenant: Tenant, key: str) -> None:
        job_id = tenant.create_job(metadata={key: key})["id"]
        tenant.create_job(metadata={key: "other", "other": key})
        found = tenant.get(PATH, **{f"metadata[{key}]": key})["data"]
        assert [job["id"] for job in found] == [job_id]

    @pytest.mark.parametrize(
        ("key", "value"),
        [("\0", "x"), ("x", "\0"), ("x" * 65, "x")],
        ids=["NUL key", "NUL value", "long key"],
    )
    def test_metadata_that_no_job_can_have_are_refused(self, tenant: Tenant, key: str, value: str) -> None:
        refused(tenant.http.get(PATH, params={f"metadata[{key}]": value}), 400, param="metadata")

    def test_unknown_cursor_is_refused(self, tenant: Tenant) -> None:
        refused(tenant.http.get(PATH, params={"after": "ftjob-x"}), 400, param="after", code="invalid_cursor")


class TestListByState:
    def test_keeps_those_in_one_of_the_states_and_refuses_what_is_none(self, tenant: Tenant) -> None:
        queued, paused, cancelled = (tenant.create_job()["id"] for _ in range(3))
        for job, command in ((paused, "pause"), (cancelled, "cancel")):
            assert tenant.http.post(f"{PATH}/{job}/{command}").status_code == 200

        def listed(*states: str) -> list[str]:
            found = tenant.http.get(PATH, params=[("state", each) for each in states])
            assert found.status_code == 200, found.text
            return [job["id"] for job in found.json()["data"]]

        assert listed("paused") == [paused]
        assert listed("held") == []
        assert listed("queued", "cancelled") == [cancelled, queued]
        assert listed() == [cancelled, paused, queued]
        refused(tenant.http.get(PATH, params={"state": "asleep"}), 400, param="state.0")


class TestListEvents:
    def test_pages_cover_everything_newest_first(self, tenant: Tenant) -> None:
        job = tenant.create_job()
        page = tenant.get(f"{PATH}/{job['id']}/events", limit=1)
        check_wire("ListFineTuningJobEventsResponse", page)
        assert page["has_more"] is True
        messages = [event.message for event in tenant.openai.fine_tuning.jobs.list_events(job["id"], limit=1)]
        assert messages == [
            "Files validated, moving job to queued state",
            f"Created fine-tuning job: {job['id']}",
        ]

    def test_cursor_of_another_job_is_refused(self, tenant: Tenant) -> None:
        first, second = tenant.create_job(), tenant.create_job()
        event = tenant.get(f"{PATH}/{first['id']}/events")["data"][0]["id"]
        reply = tenant.http.get(f"{PATH}/{second['id']}/events", params={"after": event})
        refused(reply, 400, param="after", code="invalid_cursor")


class TestListCheckpoints:
    def test_only_named_ones_newest_first(self, tenant: Tenant) -> None:
        job = tenant.create_job()
        with unit_of_work(tenant.server.database) as session:
            for step in range(1, 6):
                session.add(
                    Checkpoint(
                        id=f"ftckpt_{job['id']}-{step}",
                        project_id=tenant.project_id,
                        job_id=job["id"],
                        step=step,
                        kind="epoch",
                        digest="d" * 64,
                        folder=None,
                        name=f"ft:{job['id']}:ckpt-step-{step}" if step % 2 else None,
                        metrics={"step": step, "train_loss": 0.5},
                        created_at=utc_now(),
                    )
                )
        page = tenant.get(f"{PATH}/{job['id']}/checkpoints", limit=2)
        assert [each["step_number"] for each in page["data"]] == [5, 3]
        assert page["has_more"] is True
        for each in page["data"]:
            check_wire("FineTuningJobCheckpoint", each)
        listed = list(tenant.openai.fine_tuning.jobs.checkpoints.list(job["id"], limit=1))
        assert [each.step_number for each in listed] == [5, 3, 1]


class TestListSteps:
    def test_pages_follow_the_steps(self, tenant: Tenant) -> None:
        job = tenant.create_job()
        with unit_of_work(tenant.server.database) as session:
            for step in (3, 1, 2):
                session.add(
                    Step(job_id=job["id"], project_id=tenant.project_id, step=step, record={"step": step})
                )
        path = f"{PATH}/{job['id']}/steps"
        assert tenant.get(path, limit=2) == {
            "object": "list",
            "data": [{"step": 1, "validation": None}, {"step": 2, "validation": None}],
            "has_more": True,
        }
        assert tenant.get(path, after=2)["data"] == [{"step": 3, "validation": None}]


class TestRetrieveRisk:
    def test_curve_of_a_job_that_has_not_begun_is_empty(self, tenant: Tenant) -> None:
        job = tenant.create_job()
        curve = tenant.get(f"{PATH}/{job['id']}/risk")
        assert (curve["object"], curve["job"], curve["rows"]) == ("risk_curve", job["id"], [])
        assert curve["critic"]["quality"]["auroc"] == 0.97
        reply = tenant.http.get(f"{PATH}/{job['id']}/risk", params={"format": "csv"})
        assert reply.headers["content-type"].startswith("text/csv")
        assert reply.text.strip() == ",".join(curve["columns"])

    def test_bad_query_is_refused(self, tenant: Tenant) -> None:
        job = tenant.create_job()
        for name, value in (("format", "gif"), ("max_points", 1)):
            refused(tenant.http.get(f"{PATH}/{job['id']}/risk", params={name: value}), 400, param=name)


class TestRetrieveAdapter:
    def test_job_that_has_not_succeeded_has_none(self, tenant: Tenant) -> None:
        job = tenant.create_job()
        reply = tenant.http.get(f"{PATH}/{job['id']}/adapter")
        refused(reply, 409, code="adapter_not_ready")
        assert reply.headers["x-should-retry"] == "false"


class TestCancelJob:
    def test_queued_job_is_cancelled_at_once(self, tenant: Tenant, tmp_path: Path) -> None:
        job = tenant.create_job()
        # The client sends a content type and no content.
        reply = tenant.http.post(
            f"{PATH}/{job['id']}/cancel", headers={"content-type": "application/json", "content-length": "0"}
        )
        cancelled = reply.json()
        check_wire("FineTuningJob", cancelled)
        assert (reply.status_code, cancelled["status"], cancelled["error"]) == (200, "cancelled", None)
        assert cancelled["finished_at"] >= cancelled["created_at"]
        assert kinds(tenant, job["id"]) == ["job.created", "cmd", "job.end"]
        events = tenant.get(f"{PATH}/{job['id']}/events")["data"]
        assert events[0]["message"] == "The job was cancelled"
        evidence = tenant.http.get(f"{PATH}/{job['id']}/evidence")
        assert evidence.headers["content-type"] == "application/zip"
        bundle = tmp_path / "evidence.zip"
        bundle.write_bytes(evidence.content)
        report = verify_bundle(bundle)
        assert report.exit_code == 0, report.lines()

    def test_changed_record_does_not_verify(self, tenant: Tenant, tmp_path: Path) -> None:
        job = tenant.create_job()
        tenant.openai.fine_tuning.jobs.cancel(job["id"])
        with tampering(tenant.server.database) as session:
            leaf = session.get_one(LedgerLeaf, (job["id"], 1))
            leaf.leaf = leaf.leaf.replace(b'"cancel"', b'"cancul"')
        bundle = tmp_path / "evidence.zip"
        bundle.write_bytes(tenant.http.get(f"{PATH}/{job['id']}/evidence").content)
        assert verify_bundle(bundle).exit_code != 0

    @pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
    def test_ended_job_is_a_conflict_that_is_not_retried(self, tenant: Tenant, state: str) -> None:
        job = tenant.create_job()
        set_work(tenant, job["id"], state=state)
        reply = tenant.http.post(f"{PATH}/{job['id']}/cancel")
        assert state in refused(reply, 409, code="job_ended")
        assert reply.headers["x-should-retry"] == "false"
        assert kinds(tenant, job["id"]) == ["job.created"]

    def test_client_does_not_retry_it(self, tenant: Tenant) -> None:
        job = tenant.create_job()
        with openai.OpenAI(api_key=tenant.key, base_url=f"{tenant.server.url}/v1", max_retries=2) as client:
            client.fine_tuning.jobs.cancel(job["id"])
            with pytest.raises(openai.ConflictError) as caught:
                client.fine_tuning.jobs.cancel(job["id"])
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"

    @pytest.mark.parametrize("state", ["starting", "running", "finalising"])
    def test_owned_job_is_asked_to_stop(self, tenant: Tenant, state: str) -> None:
        job = tenant.create_job()
        set_work(tenant, job["id"], state=state, epoch=1, owner="someone")
        asked = tenant.http.post(f"{PATH}/{job['id']}/cancel").json()
        assert (asked["status"], asked["safety"]["state"]) == ("running", state)
        with read_only(tenant.server.database) as session:
            work = session.get_one(Work, job["id"])
            assert (work.desired, work.epoch, work.state) == ("cancel", 1, state)
        # Only the owner writes the record.
        assert kinds(tenant, job["id"]) == ["job.created"]

    def test_unknown_job(self, tenant: Tenant) -> None:
        refused(tenant.http.post(f"{PATH}/ftjob-x/cancel"), 404, param="fine_tuning_job_id")


class TestValidatingFiles:
    """A job on a file that is still being checked."""

    def test_job_moves_on_when_its_files_are_good(self, own_server: Any) -> None:
        tenant = own_server(sync_check_bytes=200)
        big = tenant.post_file(jsonl(*(unlike_any_other() for _ in range(9)))).json()["id"]
        small = tenant.upload()
        job = tenant.create_job(training_file=big, validation_file=small)
        check_wire("FineTuningJob", job)
        assert (job["status"], job["safety"]["state"]) == ("validating_files", "validating")
        assert job["hyperparameters"]["n_epochs"] == "auto"
        server = tenant.server
        reconcile(server.database, server.settings)
        assert tenant.get(f"{PATH}/{job['id']}")["status"] == "validating_files"
        run_worker(tenant, tenant.work_of_file(big))
        reconcile(server.database, server.settings)
        moved = tenant.get(f"{PATH}/{job['id']}")
        assert moved["status"] == "queued"
        assert "auto" not in moved["hyperparameters"].values()
        assert any(
            job["id"] in path.read_text() for path in (server.settings.home / "queue").glob("*.gpu.msg")
        )
        reconcile(server.database, server.settings)
        messages = [event["message"] for event in tenant.get(f"{PATH}/{job['id']}/events")["data"]]
        assert messages.count("Files validated, moving job to queued state") == 1

    @pytest.mark.parametrize("param", ["training_file", "validation_file"])
    def test_job_fails_when_a_file_is_bad(self, own_server: Any, param: str, tmp_path: Path) -> None:
        tenant = own_server(sync_check_bytes=200)
        bad = tenant.post_file(b"nonsense\n" * 100).json()["id"]
        fields = {"training_file": tenant.upload(), param: bad}
        job = tenant.create_job(**fields)
        assert job["status"] == "validating_files"
        run_worker(tenant, tenant.work_of_file(bad))
        reconcile(tenant.server.database, tenant.server.settings)
        failed = tenant.get(f"{PATH}/{job['id']}")
        check_wire("FineTuningJob", failed)
        assert failed["status"] == "failed"
        assert (failed["error"]["code"], failed["error"]["param"]) == ("invalid_training_file", param)
        assert "line 1, $: not JSON" in failed["error"]["message"]
        assert kinds(tenant, job["id"]) == ["job.created", "job.end"]
        bundle = tmp_path / "evidence.zip"
        bundle.write_bytes(tenant.http.get(f"{PATH}/{job['id']}/evidence").content)
        report = verify_bundle(bundle)
        assert report.exit_code == 0, report.lines()

    def test_job_fails_when_its_file_is_deleted(self, own_server: Any) -> None:
        tenant = own_server(sync_check_bytes=10)
        file_id = tenant.upload()
        job = tenant.create_job(training_file=file_id)
        # The API refuses to delete a file that a job needs; this deletion was on its way while the job was created.
        with unit_of_work(tenant.server.database) as session:
            session.get_one(File, file_id).deleted_at = utc_now()
        reconcile(tenant.server.database, tenant.server.settings)
        error = tenant.get(f"{PATH}/{job['id']}")["error"]
        assert (error["code"], error["param"]) == ("invalid_training_file", "training_file")
        assert "was deleted" in error["message"]

    def test_job_can_be_cancelled(self, own_server: Any) -> None:
        tenant = own_server(sync_check_bytes=10)
        job = tenant.create_job(training_file=tenant.upload())
        assert tenant.openai.fine_tuning.jobs.cancel(job["id"]).status == "cancelled"
        reconcile(tenant.server.database, tenant.server.settings)
        assert tenant.get(f"{PATH}/{job['id']}")["status"] == "cancelled"
