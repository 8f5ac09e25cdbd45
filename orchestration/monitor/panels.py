"""What there is to see of a run: each panel with its PromQL, and the sentences that Prometheus alerts with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Query:
    """One family of lines."""

    expr: str
    legend: str
    figure: str | None = None
    """The figure of `metrics.jsonl` that it is, unchanged."""


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    unit: str
    """Grafana's name of it."""
    queries: tuple[Query, ...]
    number: int | None = None
    """Its id, where somebody asks for it by that; else its place in the table."""


def _figure(name: str, legend: str | None = None) -> Query:
    return Query(f"ray_rlvr_step_{name}", legend or f"{name} {{{{run}}}}", name)


def _by_worker(name: str, legend: str = "{{worker}}") -> Query:
    return Query(f"ray_rlvr_{name}", legend)


def _sum(expr: str, by: str = "") -> str:
    return f"sum by ({by}) ({expr})" if by else f"sum({expr})"


_PHASES: Final = ("learning", "publishing", "evaluation", "generation", "scoring", "other")

PANELS: Final = (
    Panel(
        "Rollout tokens per second",
        "short",
        (_by_worker("rollout_tokens_per_s"), Query(_sum("ray_rlvr_rollout_tokens_per_s"), "all")),
    ),
    Panel(
        "Tokens per second, by step",
        "short",
        (_figure("rollout_tokens_per_s", "rollout"), _figure("learner_tokens_per_s", "learner")),
    ),
    Panel(
        "Learner tokens per second, all and distinct",
        "short",
        (
            _by_worker("learner_tokens_per_s", "{{worker}}, all"),
            _by_worker("learner_distinct_tokens_per_s", "{{worker}}, distinct"),
        ),
    ),
    Panel(
        "Sequences running and waiting",
        "short",
        (_by_worker("running_requests", "{{worker}} running"), _by_worker("waiting_requests", "{{worker}} waiting")),
    ),
    Panel("KV-cache use", "percentunit", (_by_worker("kv_cache_usage"),)),
    Panel(
        "Prefix-cache hits, share of prompt tokens",
        "percentunit",
        (
            Query(
                "sum by (worker) (ray_rlvr_cached_prompt_tokens_total) / "
                "clamp_min(sum by (worker) (ray_rlvr_prompt_tokens_total), 1)",
                "{{worker}}",
            ),
        ),
    ),
    Panel("Preemptions", "short", (_by_worker("preemptions_total"),)),
    Panel(
        "Versions",
        "short",
        (_by_worker("adapter_version", "served by {{worker}}"), _by_worker("learner_step", "trained by {{worker}}")),
    ),
    Panel("Groups", "short", (Query(_sum("ray_rlvr_groups_total", "outcome"), "{{outcome}}"),)),
    Panel(
        "Groups learned from, by age in versions",
        "short",
        (Query(_sum("ray_rlvr_groups_by_age_total", "age"), "{{age}}"),),
    ),
    Panel("Seconds of a step, by phase", "s", tuple(_figure(f"{phase}_s", phase) for phase in (*_PHASES, "step"))),
    Panel("Publish latency", "ms", (_figure("publish_ms"),)),
    Panel("Bytes of an adapter", "bytes", (_figure("publish_bytes"),)),
    Panel("Probe gap, served against trained, nats", "short", (_figure("probe_difference"),)),
    Panel(
        "Reward requests per second",
        "reqps",
        (Query("sum by (endpoint, status) (rate(reward_requests_total[1m]))", "{{endpoint}} {{status}}"),),
    ),
    Panel(
        "Reward latency",
        "s",
        tuple(
            Query(f"histogram_quantile({q}, sum by (le) (rate(reward_request_seconds_bucket[5m])))", f"quantile {q}")
            for q in (0.5, 0.99)
        ),
    ),
    Panel(
        "Items without a score, by reason",
        "short",
        (
            Query("sum by (reward, reason) (reward_unscored_items_total)", "{{reward}}: {{reason}}"),
            Query("sum(reward_unscored_items_total) or 0 * sum(reward_items_total)", "all"),
        ),
    ),
    Panel(
        "Items that wait, worker processes",
        "short",
        (Query("reward_queued_items", "waiting"), Query("reward_workers", "workers")),
    ),
    Panel("Reward", "short", (_figure("reward_mean"), _figure("reward_group_std", "std within groups"))),
    Panel("Accuracy", "percentunit", (_figure("accuracy"), _figure("eval_strict_accuracy", "held out, strict"))),
    Panel("KL to the sampler, nats", "short", (_figure("kl_to_sampler"),)),
    Panel("Entropy, nats", "short", (_figure("entropy"),)),
    Panel("Clip fraction", "percentunit", (_figure("clip_fraction"),)),
    Panel("Nodes", "short", (Query("count(ray_node_cpu_count)", "alive"),), 24),
    Panel("Importance weight", "short", (_figure("importance_sampling_weight_mean"),)),
    Panel("Gradient norm", "short", (_figure("grad_norm"),)),
    Panel(
        "Completion length, tokens",
        "short",
        (_figure("response_tokens_mean", "mean"), _figure("response_tokens_max", "longest")),
    ),
    Panel("Cut off by the length limit", "percentunit", (_figure("truncated_fraction"),)),
    Panel("Alarms", "short", (_figure("alarms"),)),
    Panel("CPU use of the nodes", "percent", (Query("max by (ip) (ray_node_cpu_utilization)", "{{ip}}"),), 41),
    Panel("Memory of the nodes", "bytes", (Query("max by (ip) (ray_node_mem_used)", "{{ip}}"),)),
)
"""In the order they are shown. Ray's overview page asks the board for the numbers 24 and 41, its own board's nodes and
use of them."""

RULES: Final = {
    "RunHasAlarms": (
        "max by (run) (ray_rlvr_step_alarms) > 0",
        "The watch of {{ $labels.run }} holds {{ $value }} alarms.",
    ),
    "ProbeGapIsLarge": (
        "ray_rlvr_step_probe_difference > 0.5",
        "Workers of {{ $labels.run }} serve log-probabilities that are {{ $value }} nats from the learner's.",
    ),
    "NothingIsGenerated": (
        "sum(ray_rlvr_running_requests) == 0 and sum(ray_rlvr_waiting_requests) > 0",
        "Sequences wait at the rollout workers, and none runs.",
    ),
    "RewardsAreMissing": (
        "sum(rate(reward_unscored_items_total[5m])) / sum(rate(reward_items_total[5m])) > 0.05",
        "{{ $value | humanizePercentage }} of the items have no score.",
    ),
    "GroupsAreLost": (
        'increase(ray_rlvr_groups_total{outcome="lost"}[5m]) > 0',
        "Groups of {{ $labels.run }} were lost.",
    ),
}
"""Alert rules by name: when, and what it says."""
