"""What the dashboard shows: rows of panels, each with its title, description, unit and queries.

1. `$i` in a query stands for the filter on the chosen instances, `$r` for that on the chosen
   routes, `$s` for that on the chosen microservices; `$w` for the rate's window, `JOBS` for the
   longer one of what happens once in a job: there may be few of them in an hour.
2. What is legitimately absent while all is well (errors, rejections) ends in `or vector(0)`: a
   panel without data would look like a broken one. A test runs every query on a running demo.
"""

from __future__ import annotations

from dataclasses import dataclass

JOBS = "30m"


@dataclass(frozen=True)
class Panel:
    """One panel. `queries` maps a legend to its PromQL."""

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    limit: float | None = None  # a red line, and red values beyond it
    most: float | None = None
    names: dict[str, tuple[str, str]] | None = None  # value -> (text, colour)


def quantiles(metric: str, window: str = "$w") -> dict[str, str]:
    """P50, P95 and P99 of a histogram over a window."""
    return {
        f"P{share}": f"histogram_quantile({share / 100:g}, "
        f"sum by (le) (rate({metric}_bucket{{$i}}[{window}])))"
        for share in (50, 95, 99)
    }


def quantile(share: int, metric: str, filters: str, by: str, window: str = "$w") -> str:
    """One quantile of a histogram over a window, for each value of the label `by`."""
    return (
        f"histogram_quantile({share / 100:g}, "
        f"sum by (le, {by}) (rate({metric}_bucket{{{filters}}}[{window}])))"
    )


def rate(metric: str, filters: str, by: str, *, rare: bool = False) -> str:
    """Events a second, for each value of `by`; `rare` ones are 0 while there are none."""
    text = f"sum by ({by}) (rate({metric}{{{filters}}}[$w]))"
    return f"{text} or vector(0)" if rare else text


def stage_panel(share: int, about: str) -> Panel:
    """One quantile of the pipeline's stages."""
    query = quantile(share, "pipeline_stage_duration_seconds", "$i", "stage", JOBS)
    return Panel(
        f"Stages, P{share}",
        f"{about} Over half an hour. Dots are single jobs; click one for its story.",
        "s",
        {"{{stage}}": query},
    )


def stage_share(share: int) -> str:
    """Each stage's share of one quantile of all stages; those that did not run are NaN."""
    one = quantile(share, "pipeline_stage_duration_seconds", "$i", "stage", JOBS)
    return f"({one} > 0) / on () group_left () sum({one} > 0)"


STAGE_P50 = quantile(50, "pipeline_stage_duration_seconds", "$i", "stage", JOBS)
STAGE_P50_YESTERDAY = STAGE_P50.replace(f"[{JOBS}]", f"[{JOBS}] offset 1d")

BREAKER_STATES = {"0": ("closed", "green"), "1": ("open", "red"), "2": ("half-open", "orange")}
YES_NO = {"0": ("fine", "green"), "1": ("degraded", "red")}
UP = {"0": ("away", "red"), "1": ("shared", "green")}

ROWS: dict[str, list[Panel]] = {
    "Overview": [
        Panel(
            "Availability",
            "Share of the requests of callers without a 5xx, over the chosen time; 4xx and 499 do"
            " not count. Objective: 99.5%.",
            "percentunit",
            {
                "availability": '1 - sum(avg_over_time(slo:bad:rate5m{slo="ingress-availability"}'
                '[$__range])) / sum(avg_over_time(slo:events:rate5m{slo="ingress-availability"}'
                "[$__range]))"
            },
            kind="stat",
            width=4,
            height=5,
        ),
        Panel(
            "Fast reads",
            "Share of the reads of jobs that were answered within a second. Objective: 99%.",
            "percentunit",
            {
                "fast": '1 - sum(avg_over_time(slo:bad:rate5m{slo="ingress-latency"}[$__range]))'
                ' / sum(avg_over_time(slo:events:rate5m{slo="ingress-latency"}[$__range]))'
            },
            kind="stat",
            width=4,
            height=5,
        ),
        Panel(
            "Alerts",
            "Firing now; the runbooks say what to do.",
            "short",
            {"firing": 'count(ALERTS{alertstate="firing"}) or vector(0)'},
            kind="stat",
            width=4,
            height=5,
            limit=1,
        ),
        Panel(
            "Open circuits",
            "Microservices to which calls are refused, or only tried, at present.",
            "short",
            {"open": "sum(max by (service) (circuit_breaker_state{$i}) > bool 0)"},
            kind="stat",
            width=4,
            height=5,
            limit=1,
        ),
        Panel(
            "Active jobs",
            "Jobs that are not finished.",
            "short",
            {"active": "sum(pipeline_jobs_active{$i})"},
            kind="stat",
            width=4,
            height=5,
        ),
        Panel(
            "Stranded jobs",
            "Unfinished jobs that nobody works on.",
            "short",
            {"stranded": "max(proxy_jobs_stranded{$i})"},
            kind="stat",
            width=4,
            height=5,
            limit=1,
        ),
        Panel(
            "Requests",
            "Of callers, by status.",
            "reqps",
            {"{{status}}": rate("http_requests_total", "$i", "status")},
            stacked=True,
        ),
        Panel(
            "Failures",
            "Share of 5xx, and of callers that left before their answer (499).",
            "percentunit",
            {
                "5xx": '(sum(rate(http_requests_total{$i, status=~"5.."}[$w])) or vector(0))'
                " / sum(rate(http_requests_total{$i}[$w]))",
                "499": '(sum(rate(http_requests_total{$i, status="499"}[$w])) or vector(0))'
                " / sum(rate(http_requests_total{$i}[$w]))",
            },
        ),
        Panel(
            "Duration",
            "Request head to the end of the answer, uploads and downloads included.",
            "s",
            quantiles("http_request_duration_seconds"),
        ),
        Panel(
            "Error budgets",
            "How many times faster than allowed they are being spent, over one hour. Above 14.4"
            " somebody is called.",
            "short",
            {"{{slo}} {{service}}": "slo:burn:rate1h"},
            width=12,
            limit=14.4,
        ),
        Panel(
            "Time of the service, time of the proxy",
            "P95 of the app's response head, and of what the proxy and the transfer of bodies add.",
            "s",
            {
                "service: {{upstream}}": quantile(
                    95, "proxy_upstream_response_seconds", "$i", "upstream"
                ),
                "added: {{listener}}": quantile(95, "proxy_added_seconds", "$i", "listener"),
            },
            width=12,
        ),
    ],
    "Routes": [
        Panel(
            "Requests by route",
            "Of callers.",
            "reqps",
            {"{{endpoint}}": rate("http_requests_total", "$i, $r", "endpoint")},
        ),
        Panel(
            "5xx by route",
            "Answers with 5xx, the service's own and the proxy's.",
            "reqps",
            {
                "{{endpoint}}": rate(
                    "http_requests_total", '$i, $r, status=~"5.."', "endpoint", rare=True
                )
            },
        ),
        Panel(
            "Errors of the proxy, by code",
            "Exchanges that the proxy answered itself; codes are explained in"
            " docs/reference/errors.md.",
            "reqps",
            {
                "{{endpoint}} {{code}}": rate(
                    "proxy_errors_total", "$i, $r", "endpoint, code", rare=True
                )
            },
        ),
        *(
            Panel(
                f"Duration by route, P{share}",
                "Request head to the end of the answer.",
                "s",
                {
                    "{{endpoint}}": quantile(
                        share, "http_request_duration_seconds", "$i, $r", "endpoint"
                    )
                },
            )
            for share in (50, 95, 99)
        ),
        Panel(
            "In progress",
            "Exchanges that have begun and not ended.",
            "short",
            {
                "{{listener}} {{endpoint}}": "sum by (listener, endpoint)"
                " (proxy_requests_in_flight{$i})"
            },
            width=12,
        ),
        Panel(
            "Content",
            "Bytes of requests (in) and responses (out).",
            "Bps",
            {
                "in {{listener}}": rate("proxy_request_body_bytes_total", "$i", "listener"),
                "out {{listener}}": rate("proxy_response_body_bytes_total", "$i", "listener"),
            },
            width=12,
        ),
    ],
    "Microservices": [
        Panel(
            "Circuit breakers",
            "Open: calls are refused at once. Half-open: a few are let through to try.",
            "short",
            {"{{service}}": "max by (service) (circuit_breaker_state{$i, $s})"},
            kind="state-timeline",
            width=24,
            height=6,
            names=BREAKER_STATES,
        ),
        Panel(
            "Calls",
            "By status, all attempts of a call counted as one.",
            "reqps",
            {
                "{{service}} {{status}}": rate(
                    "external_api_calls_total", "$i, $s", "service, status"
                )
            },
        ),
        Panel(
            "Failed calls",
            "Share of 5xx after all attempts; what the worker gets.",
            "percentunit",
            {
                "{{service}}": "(sum by (service) (rate(external_api_calls_total"
                '{$i, $s, status=~"5.."}[$w]))'
                " or 0 * sum by (service) (rate(external_api_calls_total{$i, $s}[$w])))"
                " / sum by (service) (rate(external_api_calls_total{$i, $s}[$w]))"
            },
        ),
        Panel(
            "Retries and refusals",
            "Attempts beyond the first, and calls that an open breaker refused.",
            "reqps",
            {
                "{{service}} retries": rate("external_api_retries_total", "$i, $s", "service"),
                "{{service}} refused": rate("proxy_breaker_rejections_total", "$i, $s", "service"),
            },
        ),
        *(
            Panel(
                f"Duration of calls, P{share}",
                "All attempts and the transfer of bodies included.",
                "s",
                {
                    "{{service}}": quantile(
                        share, "external_api_duration_seconds", "$i, $s", "service"
                    )
                },
            )
            for share in (50, 95, 99)
        ),
        Panel(
            "Response head, P95",
            "Single attempts: request head sent to response head seen.",
            "s",
            {"{{upstream}}": quantile(95, "proxy_upstream_response_seconds", "$i", "upstream")},
        ),
        Panel(
            "Connecting, P95",
            "Time to open a connection, TLS included.",
            "s",
            {"{{upstream}}": quantile(95, "proxy_upstream_connect_seconds", "$i", "upstream")},
        ),
        Panel(
            "Connections to upstreams",
            "Open ones; the app takes nine in all.",
            "short",
            {
                "{{upstream}} {{state}}": "sum by (upstream, state)"
                " (proxy_upstream_connections{$i})",
            },
        ),
        Panel(
            "Transitions",
            "Changes of breakers in five minutes.",
            "short",
            {
                "{{service}}: {{from_state}} to {{to_state}}": "sum by"
                " (service, from_state, to_state)"
                " (increase(circuit_breaker_transitions_total{$i, $s}[5m]))"
            },
            width=12,
        ),
        Panel(
            "Breakers shared through Redis",
            "While Redis is away each process decides alone.",
            "short",
            {"{{instance}}": "proxy_breaker_redis_up{$i}"},
            kind="state-timeline",
            width=12,
            names=UP,
        ),
    ],
    "Pipeline": [
        stage_panel(50, "Half of the runs of a stage are faster."),
        stage_panel(95, "One run in twenty is slower."),
        stage_panel(99, "One run in a hundred is slower."),
        Panel(
            "Stage errors",
            "Failures of stages, with type and code as the job document tells them.",
            "short",
            {
                "{{stage}} {{error_type}} {{error_code}}": "sum by (stage, error_type, error_code)"
                " (increase(pipeline_stage_errors_total{$i}[5m])) or vector(0)"
            },
        ),
        Panel(
            "Jobs that ended",
            "In five minutes, by final status.",
            "short",
            {"{{status}}": "sum by (status) (increase(pipeline_jobs_total{$i}[5m]))"},
            stacked=True,
        ),
        Panel(
            "Active jobs over time",
            "Jobs that are not finished.",
            "short",
            {"active": "sum(pipeline_jobs_active{$i})"},
        ),
        Panel(
            "Length of the audio",
            "Of the jobs' input, over half an hour; empty where the job documents do not tell it.",
            "s",
            quantiles("video_processing_input_duration_seconds", JOBS),
            width=6,
        ),
        Panel(
            "Shorts used",
            "In one video, over half an hour.",
            "short",
            quantiles("video_processing_shorts_count", JOBS),
            width=6,
        ),
        Panel(
            "Subtitle segments",
            "In one video, over half an hour.",
            "short",
            quantiles("subtitle_segments_count", JOBS),
            width=6,
        ),
        Panel(
            "Audio and video apart",
            "Drift of the finished videos, over half an hour; empty where the job documents do not"
            " tell it.",
            "s",
            quantiles("subtitle_sync_drift_seconds", JOBS),
            width=6,
        ),
        Panel(
            "Validations",
            "In five minutes, by result.",
            "short",
            {"{{result}}": "sum by (result) (increase(validation_results_total{$i}[5m]))"},
            width=6,
        ),
        Panel(
            "ffmpeg operations, P95",
            "As the worker reports them, over half an hour.",
            "s",
            {
                "{{operation}}": quantile(
                    95, "video_processing_duration_seconds", "$i", "operation", JOBS
                )
            },
            width=6,
        ),
        Panel(
            "OCR",
            "Frames a second, and P95 of the time for one run.",
            "short",
            {
                "frames/s": "sum(rate(ocr_frames_processed_total{$i}[$w]))",
                "P95 seconds": "histogram_quantile(0.95, sum by (le)"
                " (rate(ocr_processing_duration_seconds_bucket{$i}[30m])))",
            },
            width=6,
        ),
        Panel(
            "OCR confidence",
            "How sure it is of what it read, over half an hour.",
            "short",
            quantiles("ocr_confidence_score", JOBS),
            width=6,
        ),
    ],
    "Queue and bottlenecks": [
        Panel(
            "Which stage to speed up, P50",
            "Each stage's share of the time that half of the jobs take: the largest is the one to"
            " speed up. Over half an hour.",
            "percentunit",
            {"{{stage}}": stage_share(50)},
            stacked=True,
        ),
        Panel(
            "Which stage to speed up, P95",
            "The same of the slow runs: a stage that is large here and small at P50 is fast at"
            " times only.",
            "percentunit",
            {"{{stage}}": stage_share(95)},
            stacked=True,
        ),
        Panel(
            "Stages, against a day ago",
            "How much longer a stage takes (P50) than at this time yesterday: 100% is twice as"
            " long.",
            "percentunit",
            {"{{stage}}": f"{STAGE_P50} / ({STAGE_P50_YESTERDAY}) - 1 or vector(0)"},
        ),
        Panel(
            "Jobs in the queue",
            "Waiting for a worker, and worked on.",
            "short",
            {
                "waiting": "max by (mirror) (proxy_jobs_queue_length{$i})",
                "worked on": "max by (mirror) (proxy_jobs_queue_working{$i})",
            },
        ),
        Panel(
            "Waiting before the first stage",
            "From a job's creation to its first stage, and how long the oldest waiting one has"
            " waited by now.",
            "s",
            {
                **quantiles("proxy_jobs_queue_wait_seconds", JOBS),
                "oldest": "max by (mirror) (proxy_jobs_queue_oldest_seconds{$i})",
            },
        ),
        Panel(
            "Arrivals and completions",
            "Jobs a minute, and how many the workers can complete: while arrivals are above that,"
            " the queue grows.",
            "short",
            {
                "arrivals": "60 * max by (mirror) (rate(proxy_jobs_queue_arrivals_total{$i}[5m]))",
                "completions": "60 * max by (mirror)"
                " (rate(proxy_jobs_queue_completions_total{$i}[5m]))",
                "possible": "max by (mirror) (proxy_jobs_queue_capacity_per_minute{$i})",
            },
        ),
        Panel(
            "Workers that are busy",
            "Share of the workers that have a job.",
            "percentunit",
            {"busy": "max by (mirror) (proxy_jobs_queue_busy_ratio{$i})"},
            most=1,
        ),
        Panel(
            "Forecast",
            "In how long all jobs of now will be done.",
            "s",
            {"drained in": "max by (mirror) (proxy_jobs_queue_drain_seconds{$i})"},
        ),
        Panel(
            "How far estimates are off",
            "Of the time estimated at a job's first stage, as a share of what it took.",
            "percentunit",
            quantiles("proxy_jobs_queue_estimate_error_ratio", JOBS),
        ),
    ],
    "Jobs and their mirror": [
        Panel(
            "Creations",
            "confirmed: in Redis and SQLite. not_stored: accepted by the app, and not in Redis."
            " refused: Redis could not have kept it.",
            "short",
            {"{{result}}": "sum by (result) (increase(proxy_jobs_created_total{$i}[5m]))"},
        ),
        Panel(
            "Jobs put back into Redis",
            "In five minutes, by what had taken them.",
            "short",
            {"{{cause}}": "sum by (cause) (increase(proxy_jobs_restored_total{$i}[5m]))"},
        ),
        Panel(
            "Oddities",
            "Values of job keys that are not what they should be; deleted jobs that came back; what"
            " was put back for Celery.",
            "short",
            {
                "{{kind}}": "sum by (kind) (increase(proxy_mirror_oddities_total{$i}[5m]))"
                " or vector(0)",
                "held": "sum(increase(proxy_jobs_held_total{$i}[5m]))",
                "broker": "sum(increase(proxy_broker_rescued_total{$i}[5m])) or vector(0)",
            },
        ),
        Panel(
            "Mirror",
            "Whether Redis and SQLite do their part.",
            "short",
            {
                "{{mirror}} {{part}} {{instance}}": "max by (mirror, part, instance)"
                " (proxy_mirror_degraded{$i})"
            },
            kind="state-timeline",
            width=24,
            height=5,
            names=YES_NO,
        ),
        Panel(
            "Lag",
            "From the news of a change to its commit in SQLite.",
            "s",
            quantiles("proxy_mirror_lag_seconds"),
        ),
        Panel(
            "Jobs in SQLite, commits",
            "Rows, and groups of changes committed in a second.",
            "short",
            {
                "{{mirror}} rows": "max by (mirror) (proxy_mirror_rows{$i})",
                "{{mirror}} commits/s": rate("proxy_mirror_commits_total", "$i", "mirror"),
            },
        ),
        Panel(
            "Since the last full comparison",
            "Of Redis and SQLite; at most a quarter of an hour is usual.",
            "s",
            {
                "{{mirror}} {{instance}}": "time() - max by (mirror, instance)"
                " (proxy_mirror_last_sync_timestamp_seconds{$i})"
            },
            limit=2700,
        ),
    ],
    "Uploads": [
        Panel(
            "Verdicts",
            "On uploads, by what was found.",
            "short",
            {"{{verdict}}": "sum by (verdict) (increase(proxy_uploads_total{$i}[5m]))"},
            stacked=True,
        ),
        Panel(
            "Refused",
            "In five minutes, by code; in report mode what would have been refused.",
            "short",
            {
                "{{endpoint}} {{code}}": "sum by (endpoint, code)"
                " (increase(proxy_uploads_rejected_total{$i}[5m])) or vector(0)"
            },
        ),
        Panel(
            "Delay of the verdict",
            "After the last byte of the upload, over half an hour.",
            "s",
            quantiles("proxy_upload_validation_seconds", JOBS),
        ),
        Panel(
            "Playing time",
            "Of what was uploaded, over half an hour.",
            "s",
            quantiles("proxy_upload_audio_seconds", JOBS),
            width=12,
        ),
        Panel(
            "Bytes",
            "Of files that were read.",
            "Bps",
            {"{{endpoint}}": rate("proxy_upload_bytes_total", "$i", "endpoint")},
            width=12,
        ),
    ],
    "Resources": [
        Panel(
            "Disk used",
            "By the directories that the config names.",
            "bytes",
            {"{{directory}}": "max by (directory) (resource_disk_usage_bytes{$i})"},
            width=6,
        ),
        Panel(
            "Disk free",
            "Share of the file system that each directory is on. Jobs fail when it is full.",
            "percentunit",
            {
                "{{directory}}": "min by (directory)"
                " (resource_disk_free_bytes{$i} / resource_disk_size_bytes{$i})"
            },
            width=6,
            most=1,
        ),
        Panel(
            "Memory",
            "Resident, of processes by name.",
            "bytes",
            {"{{component}}": "sum by (component) (resource_memory_usage_bytes{$i})"},
            width=6,
        ),
        Panel(
            "ffmpeg and temporary files",
            "Running processes, and files that wait to be removed.",
            "short",
            {
                "ffmpeg processes": "sum(resource_ffmpeg_processes{$i})",
                "temporary files": "sum(resource_temp_files_count{$i})",
            },
            width=6,
        ),
    ],
    "Proxy": [
        Panel(
            "CPU",
            "Of the process, in cores.",
            "short",
            {"{{instance}}": "rate(process_cpu_seconds_total{$i}[$w])"},
            width=6,
        ),
        Panel(
            "Memory of the process",
            "Resident.",
            "bytes",
            {"{{instance}}": 'process_resident_memory_bytes{$i, job="reliability-proxy"}'},
            width=6,
        ),
        Panel(
            "Event loop",
            "How late a timer runs, P99; what is served waits as long.",
            "s",
            {"{{instance}}": quantile(99, "proxy_event_loop_lag_seconds", "$i", "instance")},
            width=6,
            limit=0.1,
        ),
        Panel(
            "Connections of callers",
            "Open ones.",
            "short",
            {"{{listener}}": "sum by (listener) (proxy_client_connections{$i})"},
            width=6,
        ),
        Panel(
            "File descriptors",
            "Share of the limit that is in use.",
            "percentunit",
            {
                "{{instance}}": 'process_open_fds{$i, job="reliability-proxy"}'
                ' / process_max_fds{$i, job="reliability-proxy"}'
            },
            width=6,
            most=1,
            limit=0.8,
        ),
        Panel(
            "Running for",
            "Since the start of the process.",
            "s",
            {"{{instance}}": 'time() - process_start_time_seconds{$i, job="reliability-proxy"}'},
            width=6,
        ),
        Panel(
            "Log lines lost, reloads",
            "In five minutes.",
            "short",
            {
                "lines lost": "sum(increase(proxy_log_lines_dropped_total{$i}[5m]))",
                "reloads {{result}}": "sum by (result)"
                " (increase(proxy_config_reloads_total{$i}[5m]))",
            },
            width=6,
        ),
        Panel(
            "Statsd",
            "Lines of the app's statsd clients, by what became of them.",
            "short",
            {"{{result}}": rate("proxy_statsd_lines_total", "$i", "result", rare=True)},
            width=6,
        ),
        Panel(
            "The app's own metrics",
            "Whether its page could be fetched and is part of ours.",
            "short",
            {"{{instance}}": "proxy_app_metrics_up{$i}"},
            kind="state-timeline",
            width=6,
            names={"0": ("missing", "red"), "1": ("fetched", "green")},
        ),
        Panel(
            "Who counts the pipeline",
            "One sidecar of each mirror at any time.",
            "short",
            {"{{mirror}} {{instance}}": "max by (mirror, instance) (proxy_pipeline_counting{$i})"},
            kind="state-timeline",
            width=6,
            names={"0": ("no", "blue"), "1": ("counts", "green")},
        ),
        Panel(
            "Trace",
            "Events that were written, and those lost.",
            "short",
            {
                "written": "sum(rate(proxy_trace_events_total{$i}[$w]))",
                "lost: {{reason}}": rate("proxy_trace_dropped_total", "$i", "reason", rare=True),
            },
            width=6,
        ),
        Panel(
            "Versions",
            "What runs where.",
            "short",
            {"{{instance}} {{version}}": "count by (instance, version) (proxy_build_info{$i})"},
            width=6,
        ),
    ],
}
