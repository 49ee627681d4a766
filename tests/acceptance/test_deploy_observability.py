"""Prometheus itself reads our rules, tries our alerts, and answers every panel about a demo.

Needs promtool and prometheus (Debian: `apt-get install prometheus`); without them it is skipped.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from redis.asyncio import Redis
from rich.console import Console

from proxy.demo.redis_server import free_port
from proxy.demo.tour import steps, tour
from proxy.demo.tour.guide import Tour
from proxy.demo.tour.narrator import Narrator
from proxy.demo.world import World
from tests.deployment import DASHBOARD, DEPLOY, RULES, SCENARIOS, commands, panels
from tests.http1 import PATIENCE

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool here (Debian package prometheus)"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus here (Debian package prometheus)"
)


def promtool(*arguments: str | Path) -> None:
    """Fails with all that promtool printed, if it fails."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_rules_and_config_are_valid() -> None:
    """As Prometheus reads them, with the rule files that the config names."""
    promtool("check", "rules", "--lint=all", "--lint-fatal", *sorted(RULES.glob("*.yaml")))
    promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")


@needs_promtool
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", sorted(SCENARIOS.glob("*.yaml")), ids=lambda file: file.stem)
def test_alerts_fire_when_they_should_and_only_then(file: Path) -> None:
    """Prometheus plays every scenario, with the texts that people would read."""
    promtool("test", "rules", file)


@pytest.mark.skipif(shutil.which("jq") is None, reason="no jq here")
@pytest.mark.parametrize("words", commands("logs"), ids=" ".join)
def test_the_log_filters_of_the_runbooks_compile(words: list[str]) -> None:
    """jq takes each, and finds nothing in nothing."""
    pipe = words.index("|")
    end = words.index("|", pipe + 1) if "|" in words[pipe + 1 :] else len(words)
    assert words[pipe + 1] == "jq"
    done = subprocess.run(words[pipe + 1 : end], input="", capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Prometheus:
    """A Prometheus that scrapes one proxy, with the rules of deploy/."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.http = http

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path, target: str) -> AsyncIterator[Prometheus]:
        """The config of deploy/, but for the address of the proxy and the pace."""
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["global"]["scrape_timeout"] = "1s"
        config["rule_files"] = [str(RULES / "*.yaml")]
        del config["alerting"]
        (job,) = (job for job in config["scrape_configs"] if job["job_name"] != "prometheus")
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [target]}]
        config["scrape_configs"] = [job]
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        port = free_port()
        with (folder / "prometheus.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
                stdout=log,
                stderr=log,
            )
        try:
            async with aiohttp.ClientSession() as http:
                prometheus = cls(f"http://127.0.0.1:{port}", http)
                await prometheus.until_ready(process)
                yield prometheus
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    async def until_ready(self, process: asyncio.subprocess.Process) -> None:
        """Returns once it answers queries; fails when it ends, or after 20 s."""
        async with asyncio.timeout(PATIENCE):
            while process.returncode is None:
                try:
                    async with self.http.get(f"{self.url}/-/ready") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass  # it does not listen yet
                await asyncio.sleep(0.1)
        pytest.fail(f"prometheus ended with {process.returncode}; see prometheus.log in tmp_path")

    async def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its API; fails with Prometheus' own words."""
        async with self.http.get(f"{self.url}/api/v1/{path}", params=parameters) as answer:
            document = await answer.json()
        assert document["status"] == "success", (parameters, document)
        return document["data"]

    async def has(self, query: str) -> bool:
        """Whether there is a number in the answer."""
        result = (await self.get("query", query=query))["result"]
        return any(not math.isnan(float(series["value"][1])) for series in result)


def with_values(query: str) -> str:
    """The query as Grafana sends it with everything chosen."""
    for variable in ("$instance", "$route", "$service"):
        query = query.replace(variable, ".*")
    query = query.replace("$__rate_interval", "5m").replace("$__range", "5m")
    assert "$" not in query
    return query


async def missing(prometheus: Prometheus, queries: dict[str, str]) -> list[str]:
    """Those that have no answer after the scrapes and evaluations of 20 s."""
    waiting = dict(queries)
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while waiting and asyncio.get_running_loop().time() < deadline:
        for name, query in list(waiting.items()):
            if await prometheus.has(query):
                del waiting[name]
        await asyncio.sleep(0.5)
    return [f"{name}: {query}" for name, query in waiting.items()]


async def more_informative_jobs(world: World, prometheus: Prometheus, like: str) -> None:
    """Two finished jobs with what the service's documents have room for and the demo's leave out:
    the length of the audio, and how far sound and picture are apart."""
    async with Redis.from_url(world.redis.url, decode_responses=True) as redis:
        job = json.loads(await redis.get(f"make_video:job:{like}") or "")
        job["audio_duration"] = 20.0
        job["stages"]["validate_av_sync"]["metadata"] = {"drift": 0.02}
        for number in (1, 2):
            job["id"] = f"mv_tells{number}"
            await redis.set(f"make_video:job:{job['id']}", json.dumps(job), ex=3600)
            seen = f"subtitle_sync_drift_seconds_count >= {number}"
            assert await missing(prometheus, {"drift": seen}) == []


@needs_prometheus
@pytest.mark.slow
@pytest.mark.timeout(900)
# The tour sends files as they are; its own process would only note that.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_every_panel_shows_something_after_the_tour(tmp_path: Path) -> None:
    """No query fails or is empty, rules are evaluated, an alert fires, exemplars lead to jobs."""
    output = io.StringIO()
    world = World()
    async with (
        world,
        Prometheus.running(tmp_path, f"127.0.0.1:{world.at.ports['METRICS']}") as prometheus,
    ):
        if await missing(prometheus, {"scrape": "up == 1"}):
            (active,) = (await prometheus.get("targets"))["activeTargets"]
            pytest.fail(f"the scrape failed: {active['lastError']}")
        narrator = Narrator(Console(file=output))
        # What happens once in a job needs two: a first value is no increase.
        first = Tour(world, prometheus.http, narrator, correlation_id="first")
        await steps.find_shorts(first)
        await steps.upload_audio(first)
        await steps.follow_job(first)
        await more_informative_jobs(world, prometheus, first.video_job)
        assert await tour.give(world, narrator), output.getvalue()
        queries = {
            f"{panel['title']} {target['refId']}": with_values(target["expr"])
            for panel in panels()
            for target in panel["targets"]
        }
        assert not (empty := await missing(prometheus, queries)), "\n".join(empty)
        # The tour has killed Redis.
        alert = 'ALERTS{alertname="JobsRestored", cause="restart", alertstate="firing"}'
        assert await missing(prometheus, {"alert": alert}) == []
        dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
        for note in dashboard["annotations"]["list"]:
            await prometheus.get("query", query=note["expr"])
        for _, query in commands("prom"):
            await prometheus.get("query", query=query)
        for variable in dashboard["templating"]["list"][1:]:
            name, label = variable["definition"].removeprefix("label_values(")[:-1].split(", ")
            values = await prometheus.get(f"label/{label}/values", **{"match[]": name})
            assert values, variable["name"]
        for group in (await prometheus.get("rules"))["groups"]:
            for rule in group["rules"]:
                assert rule["health"] == "ok", rule
        found = await prometheus.get(
            "query_exemplars",
            query="pipeline_stage_duration_seconds_bucket",
            start="0",
            end="4000000000",
        )
        jobs = {example["labels"]["job_id"] for series in found for example in series["exemplars"]}
        assert any(job.startswith("mv_") for job in jobs)
