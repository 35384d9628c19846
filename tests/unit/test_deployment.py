"""The deployed form, read from its files: no Docker engine runs here, so what can be wrong on paper is checked on paper."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from app.cli import cli
from app.queue import QUEUES
from app.serve import STOP_TIMEOUT_S
from app.settings import PREFIX, Settings, load_settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
DEPLOY = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
REQUIRED = re.compile(r"\$\{(\w+):\?set \1\}")
OPTIONAL = re.compile(r"\$\{(TETHER_\w+):-\}")
"""What may be left out; an empty setting is the same as none."""
SECRETS = ("PASSWORD", "SECRET", "KEY", "TOKEN")


def test_what_is_no_module_is_installed_with_the_package() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["*"]
    missing = {
        path.relative_to(ROOT).as_posix()
        for room in ("app", "worker", "migrations")
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
        if not any(path.match(pattern) for pattern in patterns)
    }
    # The digests of the miniature's weights are for whoever builds them again.
    assert missing == {"worker/miniature/weights/SHA256SUMS"}


def dockerfile_targets() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each build target, those of the targets that it is built on first."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    targets: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            image, _, name = rest.split()
            current = targets[name] = list(targets.get(image, []))
        current.append((instruction, rest))
    return targets


TARGETS = dockerfile_targets()


def commands_of(service: dict[str, Any]) -> list[str]:
    """Return the command of one of our services, or that of its image."""
    if "command" in service:
        return list(service["command"])
    return list(json.loads(dict(TARGETS[service["build"]["target"]])["CMD"]))


def strings_in(value: Any) -> list[str]:
    """Return every string of a document."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in strings_in(each)]
    if isinstance(value, list):
        return [text for each in value for text in strings_in(each)]
    return [value] if isinstance(value, str) else []


def seconds(duration: str) -> float:
    """Return a duration of compose in seconds."""
    return float(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


class TestCompose:
    def test_services_are_the_parts(self) -> None:
        assert set(OURS) == {"api", "reconciler", "webhooks", "notary", "worker-gpu", "worker-cpu", "migrate"}
        assert set(SERVICES) - set(OURS) == {"postgres", "valkey", "objects", "bucket"}

    @pytest.mark.parametrize("name", OURS)
    def test_command_is_one_that_tether_has(self, name: str) -> None:
        program, subcommand, *options = commands_of(OURS[name])
        command = typer.main.get_command(cli).commands[subcommand]  # type: ignore[attr-defined]
        assert program == "tether"
        command.make_context(subcommand, options)  # Parses the options and runs nothing.

    def test_every_queue_has_a_worker(self) -> None:
        commands = [commands_of(service) for service in OURS.values()]
        assert {each[-1] for each in commands if each[1] == "worker"} == set(QUEUES)

    @pytest.mark.parametrize("name", OURS)
    def test_environment_is_one_that_the_settings_take(self, name: str) -> None:
        environment = {
            variable: OPTIONAL.sub("", value) for variable, value in OURS[name]["environment"].items()
        }
        unknown = {
            each
            for each in environment
            if each.startswith(PREFIX) and each.removeprefix(PREFIX).lower() not in Settings.model_fields
        }
        assert not unknown
        settings = load_settings(environment, home=Path("/data"))
        assert (settings.database_url, settings.broker_url, settings.storage_url) != ("", "", "")

    def test_every_setting_is_fixed_or_the_operators(self) -> None:
        # The folders are the images' own. A policy is a file, which needs a mount (docs/deploy.md).
        fixed = {
            "home",
            "storage_dir",
            "notary_dir",
            "policy_file",
            "database_url",
            "broker_url",
            "storage_url",
        }
        # Nobody has a secret that he does not need.
        told = {"api_key": {"api"}, "judge_api_key": {"worker-gpu"}, "mlflow_token": {"worker-cpu"}}
        told |= {"anchor_url": {"webhooks"}, "anchor_secret": {"webhooks"}}
        for field in Settings.model_fields:
            variable = PREFIX + field.upper()
            given = {name: each["environment"].get(variable) for name, each in OURS.items()}
            if field in fixed:
                assert not [value for value in given.values() if value and OPTIONAL.search(value)], variable
            elif field in told:
                assert {name for name, value in given.items() if value is not None} == told[field], variable
            else:
                assert set(given.values()) == {f"${{{variable}:-}}"}, variable

    def test_what_a_service_waits_for_exists_and_can_be_waited_for(self) -> None:
        for name, service in SERVICES.items():
            for needed, condition in service.get("depends_on", {}).items():
                assert needed in SERVICES, f"{name} waits for {needed}, which is no service"
                if condition["condition"] == "service_healthy":
                    assert "healthcheck" in SERVICES[needed], f"{needed} has no health check for {name}"
                else:
                    assert condition["condition"] == "service_completed_successfully"
                    assert SERVICES[needed].get("restart", "no") == "no", f"{needed} never completes"

    def test_what_runs_waits_for_the_schema_and_the_bucket(self) -> None:
        for name in set(OURS) - {"migrate"}:
            assert {"migrate", "bucket"} <= set(OURS[name]["depends_on"])

    @pytest.mark.parametrize("name", SERVICES)
    def test_image_is_of_one_version(self, name: str) -> None:
        tag = SERVICES[name]["image"].rpartition(":")[2]
        assert re.match(r"\d+\.\d+", tag), SERVICES[name]["image"]

    def test_our_images_have_our_version(self) -> None:
        for name, service in OURS.items():
            target = service["build"]["target"]
            assert service["image"] == f"tether-{target}:{PROJECT['version']}", name

    def test_workers_may_finish_their_step(self) -> None:
        for name in ("worker-gpu", "worker-cpu"):
            assert seconds(SERVICES[name]["stop_grace_period"]) > STOP_TIMEOUT_S

    def test_only_the_api_is_published_and_only_here(self) -> None:
        published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
        assert list(published) == ["api"]
        assert all(port.startswith("127.0.0.1:") for port in published["api"])

    def test_no_worker_has_a_way_out_of_its_network(self) -> None:
        networks = COMPOSE["networks"]
        assert networks["inside"]["internal"] is True
        for name, service in SERVICES.items():
            assert "inside" in service["networks"], (
                f"{name} would be in the default network, which leads everywhere"
            )
            assert set(service["networks"]) <= set(networks)
            others = set(service["networks"]) - {"inside"}
            assert others == {"api": {"front"}, "webhooks": {"outward"}}.get(name, set()), name

    def test_what_the_documentation_opens_is_an_override_of_this_file(self) -> None:
        blocks = re.findall(r"^```yaml\n(.*?)^```$", DEPLOY, re.M | re.S)
        opened = [yaml.safe_load(each) for each in blocks if "judge" in each and "services:" in each]
        assert [set(each["services"]) <= set(SERVICES) for each in opened] == [True]
        (policy,) = (yaml.safe_load(each) for each in blocks if "NetworkPolicy" in each)
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert policy["spec"]["ingress"] == []
        assert all(rule["to"] and rule["ports"] for rule in policy["spec"]["egress"])

    def test_health_check_asks_for_a_path_that_exists(self) -> None:
        from app.health import router

        asked = re.search(r"8000(/\w+)", " ".join(SERVICES["api"]["healthcheck"]["test"]))
        assert asked is not None
        assert asked[1] in {route.path for route in router.routes}  # type: ignore[attr-defined]

    def test_no_secret_has_a_default(self) -> None:
        for text in strings_in(COMPOSE):
            rest = OPTIONAL.sub("", REQUIRED.sub("", text))
            assert rest.count("${") == 0, f"{text}: write it as ${{NAME:?set NAME}}"
        for name, service in SERVICES.items():
            for variable, value in service.get("environment", {}).items():
                if any(word in variable for word in SECRETS):
                    assert REQUIRED.search(value) or OPTIONAL.fullmatch(value), (
                        f"{name}: {variable} is written down"
                    )

    def test_example_environment_names_what_is_required_and_fills_in_nothing(self) -> None:
        lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
        given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        named = {
            name
            for text in strings_in(COMPOSE)
            for form in (REQUIRED, OPTIONAL)
            for name in form.findall(text)
        }
        assert set(given) == named
        assert set(given.values()) == {""}
        assert "/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()

    def test_volumes_and_configs_are_declared(self) -> None:
        named = {
            volume.split(":")[0]
            for service in SERVICES.values()
            for volume in service.get("volumes", [])
            if re.match(r"[\w-]+:/", volume)
        }
        used = {each["source"] for service in SERVICES.values() for each in service.get("configs", [])}
        assert named == set(COMPOSE["volumes"])
        assert used == set(COMPOSE["configs"])

    def test_configuration_of_the_object_store_is_json(self) -> None:
        content = json.loads(REQUIRED.sub("x", COMPOSE["configs"]["s3"]["content"]))
        assert content["identities"][0]["credentials"]

    def test_all_speak_of_one_bucket(self) -> None:
        bucket = SERVICES["bucket"]["environment"]["BUCKET"]
        environment = OURS["api"]["environment"]
        endpoint, _, name = bucket.rpartition("/")
        assert environment["TETHER_STORAGE_URL"] == f"s3://{name}"
        assert environment["AWS_ENDPOINT_URL"] == endpoint


class TestDockerfile:
    def test_targets_are_those_of_compose(self) -> None:
        assert set(TARGETS) == {"base", *(service["build"]["target"] for service in OURS.values())}

    @pytest.mark.parametrize("target", TARGETS)
    def test_base_image_is_of_one_version(self, target: str) -> None:
        image = TARGETS[target][0][1].split()[0]
        assert re.match(r"[\w/]+:\d+\.\d+", image), image

    @pytest.mark.parametrize("target", TARGETS)
    def test_copied_files_exist_and_reach_the_build(self, target: str) -> None:
        ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        for instruction, rest in TARGETS[target]:
            if instruction == "COPY":
                for source in shlex.split(rest)[:-1]:
                    assert (ROOT / source).exists(), source
                    assert source not in ignored, source

    def test_api_has_neither_torch_nor_the_worker(self) -> None:
        for instruction, rest in TARGETS["api"]:
            assert not re.search(r"\btorch\b|\bworker\b", rest), f"{instruction} {rest}"

    @pytest.mark.parametrize("target", ["api", "worker"])
    def test_extras_exist_and_speak_s3(self, target: str) -> None:
        installed = [
            rest for instruction, rest in TARGETS[target] if instruction == "RUN" and "/src[" in rest
        ]
        (extras,) = re.findall(r'"/src\[([\w,]+)\]"', " ".join(installed))
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
        assert "s3" in extras.split(",")

    def test_every_install_is_pinned(self) -> None:
        for instructions in TARGETS.values():
            for instruction, rest in instructions:
                if instruction == "RUN" and "pip install" in rest:
                    assert "--constraint /src/constraints.txt" in rest

    @pytest.mark.parametrize("target", ["api", "worker"])
    def test_runs_as_somebody_without_rights(self, target: str) -> None:
        users = [rest for instruction, rest in TARGETS[target] if instruction == "USER"]
        assert users
        assert int(users[-1]) > 0

    def test_secrets_stay_out_of_the_context(self) -> None:
        assert {".env", ".git"} <= set((ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines())


class TestConstraints:
    def test_every_dependency_is_pinned(self) -> None:
        pinned = {
            normal(line.split("==")[0])
            for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
            if "==" in line
        }
        groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
        names = {normal(re.split(r"[\[<>=]", each)[0]) for group in groups for each in group} - {"tether"}
        assert names <= pinned


class TestConfiguration:
    def test_every_setting_is_described_as_it_is(self) -> None:
        text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
        table = settings_table()
        assert table in text, f"docs/configuration.md lacks this table:\n\n{table}\n"


def settings_table() -> str:
    """Return the table of the settings as the documentation has it."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "", Path()) else f"`{field.default}`"
        lines.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines)


def normal(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
