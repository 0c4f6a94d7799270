#!/usr/bin/env python3
"""Reads what scripts/bench measured, and says it in one line or in one report.

Usage: report.py value PATH METRIC                     the headline of one measurement
       report.py table DIRECTORY FACTS CONTENDER...    the report, as Markdown

A measurement is two files: PATH.out, what iperf3 (JSON) or wrk printed, and PATH.counters,
`name=value` differences of the machine's counters. In DIRECTORY they are CONTENDER.METRIC.ROUND.out.
"""

import json
import os
import re
import statistics
import sys
from pathlib import Path

METRICS = {
    "up1": "one stream, client to server",
    "up4": "four streams, client to server",
    "down1": "one stream, server to client",
    "down4": "four streams, server to client",
    "keepalive": "keep-alive requests",
    "connections": "new connections, a request each",
    "udp": "UDP, 64 bytes a datagram",
}
BULK = ("up1", "up4", "down1", "down4")
TITLES = {
    "gatun": "gatun",
    "fullnat": "gatun fullnat",
    "masquerade": "gatun masquerade",
    "nftables": "nftables",
    "haproxy": "HAProxy",
    "nginx": "nginx",
    "direct": "gatun direct",
    "tunnel": "gatun tunnel",
    "vxlan": "kernel VXLAN",
    "plain": "gatun tunnel, no offload",
}
# Whose ratios to the others are shown.
OURS = ("gatun", "fullnat", "masquerade", "direct", "tunnel")
# To which, where not to all.
AGAINST = {"fullnat": ("gatun",), "masquerade": ("gatun",)}

# Rows of the tables: a metric's value by name, its unit, digits after the point, and whether less is better.
FIGURES = (
    [(m, "rate", "Gbit/s", 2, False) for m in BULK]
    + [
        row
        for m, unit in (("keepalive", "requests/s"), ("connections", "connections/s"))
        for row in (
            (m, "rate", unit, 0, False),
            (m, "p50", "p50, ms", 2, True),
            (m, "p99", "p99, ms", 2, True),
            (m, "errors", "errors", 0, True),
        )
    ]
    + [("udp", "rate", "packets/s", 0, False), ("udp", "loss", "lost, %", 1, True)]
)
COSTS = [(m, "s/GB", 3) for m in BULK] + [("keepalive", "µs/request", 2), ("connections", "µs/request", 2), ("udp", "µs/packet", 2)]

# The goals of the project: metric, value, whose, against whom, the least ratio (the greatest, where less is better).
GOALS = [
    ("up1", "rate", "nftables", 0.8),
    ("up1", "rate", "haproxy", 1.3),
    ("up1", "rate", "nginx", 1.3),
    ("down1", "rate", "nftables", 0.8),
    ("down1", "rate", "haproxy", 1.3),
    ("down1", "rate", "nginx", 1.3),
    ("up4", "rate", "haproxy", 1.2),
    ("down4", "rate", "haproxy", 1.2),
    ("keepalive", "rate", "haproxy", 0.95),
    ("keepalive", "rate", "nginx", 0.95),
    ("keepalive", "p99", "haproxy", 1.0),
    ("keepalive", "p99", "nginx", 1.0),
    ("connections", "rate", "haproxy", 0.95),
]
GOALS = [(metric, name, "gatun", other, bound) for metric, name, other, bound in GOALS] + [
    ("up1", "rate", "direct", "nftables", 1.0),
    ("down4", "rate", "direct", "nftables", 0.7),
    ("down4", "rate", "direct", "haproxy", 1.3),
    ("connections", "rate", "direct", "nftables", 1.05),
    ("keepalive", "rate", "direct", "haproxy", 0.95),
    ("down1", "rate", "tunnel", "direct", 0.9),
    ("down4", "rate", "tunnel", "direct", 0.9),
    ("up1", "rate", "tunnel", "plain", 3.0),
] + [
    (metric, "rate", whose, "gatun", 0.97) for whose in ("fullnat", "masquerade") for metric in METRICS
]


def main():
    if sys.argv[1:2] == ["value"] and len(sys.argv) == 4:
        try:
            print(headline(sys.argv[3], read(sys.argv[2], sys.argv[3])))
        except (ValueError, KeyError, OSError) as error:
            sys.exit(f"no figure in {sys.argv[2]}.out: {error}")
    elif sys.argv[1:2] == ["table"] and len(sys.argv) > 4:
        print(report(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
    else:
        sys.exit(__doc__)


# ---- one measurement ----


def read(path, metric):
    """Every value of one measurement: rate, p50 and the like, and the costs `all` and `own` per unit of work."""
    text = Path(f"{path}.out").read_text(errors="replace")
    counters = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", Path(f"{path}.counters").read_text())}
    if metric in ("keepalive", "connections"):
        values, work = read_wrk(text)
        unit = 1e6
    else:
        result = json.loads(text)
        if "error" in result:
            raise ValueError(result["error"])
        if metric == "udp":
            values, work = read_udp(result, counters)
            unit = 1e6
        else:
            received = result["end"]["sum_received"]
            values, work = {"rate": received["bits_per_second"] / 1e9}, received["bytes"] / 1e9
            unit = 1
    if not work or not values["rate"]:
        raise ValueError("nothing came through")
    jiffies = os.sysconf("SC_CLK_TCK")
    # What the kernel does alone has no process of its own.
    for name, counter in (("all", "busy"), ("own", "own")):
        values[name] = counters[counter] / jiffies / work * unit if counter in counters else None
    return values


def read_wrk(text):
    requests, seconds = re.search(r"(\d+) requests in ([\d.]+\w+)", text).groups() if "requests in" in text else ("0", "1s")
    values = {"rate": int(requests) / duration(seconds)}
    for name, percent in (("p50", "50%"), ("p99", "99%")):
        found = re.search(rf"^\s+{percent}\s+([\d.]+\w+)", text, re.M)
        if not found:
            raise ValueError(f"no latency at {percent}")
        values[name] = duration(found[1]) * 1e3
    failed = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    values["errors"] = sum(map(int, failed.groups())) if failed else 0
    values["errors"] += int(refused[1]) if refused else 0
    return values, int(requests)


def read_udp(result, counters):
    # The kernel's counters at both ends: iperf3's own count of lost datagrams misses those after the last it saw.
    seconds = result["end"]["sum"]["seconds"]
    arrived, sent = counters["arrived"], counters["sent"]
    if not sent:
        raise ValueError("nothing was sent")
    return {"rate": arrived / seconds, "loss": max(0, 100 * (1 - arrived / sent))}, arrived


def duration(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m|h)", text).groups()
    return float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}[unit]


def headline(metric, values):
    parts = []
    for row, name, unit, digits, _ in FIGURES:
        if row == metric and not (name == "errors" and not values[name]):
            parts.append(f"{values[name]:,.{digits}f} {unit}" if name == "rate" else f"{unit} {values[name]:,.{digits}f}")
    return ", ".join(parts)


# ---- the report ----


def report(directory, facts, contenders):
    runs = {}
    for path in sorted(directory.glob("*.*.*.counters")):
        contender, metric, turn, _ = path.name.split(".")
        runs.setdefault((metric, contender), {})[int(turn)] = read(path.with_suffix(""), metric)
    rounds = max((turn for turns in runs.values() for turn in turns), default=0)

    def median(metric, contender, name):
        values = [turn[name] for turn in runs.get((metric, contender), {}).values() if turn[name] is not None]
        return statistics.median(values) if values else None

    measured = [metric for metric in METRICS if any((metric, c) in runs for c in contenders)]
    ours = [c for c in contenders if c in OURS]
    others = {c: AGAINST.get(c, [other for other in contenders if other not in AGAINST and other not in ours[: ours.index(c) + 1]]) for c in ours}
    pairs = [(c, other) for c in ours for other in others[c] if other in contenders]
    facts = dict(line.split(": ", 1) for line in facts.read_text().splitlines())

    def rows(figures, digits_of_ratio=2):
        """Medians, then gatun's ratios to the others."""
        for label, metric, name, unit, digits in figures:
            medians = {c: median(metric, c, name) for c in contenders}
            if all(value in (None, 0) for value in medians.values()):
                continue
            yield [label, unit, *(number(medians[c], digits) for c in contenders)] + [
                number(ratio(medians[c], medians[other]), digits_of_ratio) for c, other in pairs
            ]

    head = ["", "unit", *(TITLES[c] for c in contenders), *(f"{TITLES[c]} / {TITLES[other]}" for c, other in pairs)]
    speed = [(METRICS[m], m, name, unit + (" ↓" if less else ""), digits) for m, name, unit, digits, less in FIGURES if m in measured]
    whole = [(f"{METRICS[m]}: whole machine", m, "all", unit + " ↓", digits) for m, unit, digits in COSTS if m in measured]
    own = [(f"{METRICS[m]}: the gateway's processes", m, "own", unit + " ↓", digits) for m, unit, digits in COSTS if m in measured]

    parts = [
        "# Benchmarks",
        f"{' and '.join(TITLES[c] for c in ours)} beside {', '.join(TITLES[c] for c in contenders if c not in ours)}, each as the "
        "gateway of the same lab of network namespaces on one machine, one at a time, in interleaved rounds. Client, gateway and servers share the machine's CPUs. "
        f"Each figure is the median of {rounds} round{'s' if rounds != 1 else ''}; a ratio is that of two medians. ↓ marks figures of "
        "which less is better.",
        "\n".join(f"- {name}: " + (f"`{value}`" if name == "Command" else value) for name, value in facts.items()),
        table(head, [*rows(speed), *rows(whole), *rows(own)]),
    ]
    goals = list(check_goals(median))
    if goals:
        parts += ["## Goals", table(["", "whose", "against", "goal", "measured", ""], goals)]
    parts += ["## How it is measured", HOW + (HOW_METHODS if "direct" in contenders or "tunnel" in contenders else ""), "## Every round", table(head[:2] + head[2 : 2 + len(contenders)], every_round(runs, measured, contenders))]
    return "\n\n".join(parts)


def check_goals(median):
    less_is_better = {(m, name): less for m, name, _, _, less in FIGURES}
    units = {(m, name): unit for m, name, unit, _, _ in FIGURES}
    for metric, name, whose, other, bound in GOALS:
        value = ratio(median(metric, whose, name), median(metric, other, name))
        if value is None:
            continue
        less = less_is_better[metric, name]
        met = value <= bound if less else value >= bound
        yield [f"{METRICS[metric]}, {units[metric, name]}", TITLES[whose], TITLES[other], f"{'≤' if less else '≥'} {bound:.2f}", number(value, 2), "met" if met else "**missed**"]


def every_round(runs, measured, contenders):
    for metric, name, unit, digits, _ in FIGURES:
        if metric in measured and name != "errors":
            cells = [[number(turn[name], digits) for _, turn in sorted(runs.get((metric, c), {}).items())] for c in contenders]
            yield [METRICS[metric], unit, *(" · ".join(cell) or "–" for cell in cells)]


HOW = """\
- All traffic comes from one client address, and so meets in one of gatun's shards: with many clients they share the work, here they do not.
- Every TCP socket uses cubic, the proxies' too; offloads are as the kernel sets them on veth pairs; bridge-nf-call-iptables is off.
- Streams: iperf3; its control and data connections must meet in one server, so this service has one. The rate is what the receiver got.
- Requests: wrk, 2 threads, 64 connections, a page of 77 bytes from nginx (2 workers) on each of three servers, chosen in turn. wrk counts the latency of a request from when it is sent: the handshake of a new connection is in the rate, not in p50 and p99.
- UDP: iperf3, four flows, as fast as one thread can send. The rate is the datagrams that reached the server's UDP, lost is the share of those sent that did not. HAProxy carries no UDP.
- Whole machine: CPU time of everything (client, gateway, servers, kernel) during the run, for each GB (10⁹ bytes), request or datagram that arrived. The gateway's processes: their user and system time alone; what nftables does is in the kernel and belongs to no process, and a process that sends may be charged with the kernel's work further down the path, or the other way round.
- nftables: `dnat to numgen inc mod 3 map`, with connection tracking. HAProxy: mode tcp, 2 threads, maxconn 8000. nginx: stream, 2 workers. gatun: method nat, scheduler rr, all else as it comes. gatun fullnat: the same with a pool of four addresses. gatun masquerade: the client is an inside host and asks the first server by its own address, so one server has all requests."""


HOW_METHODS = """
- Direct routing and tunnels: the servers hold the virtual address and answer by a router of their own, past the gateway; only what the client sends crosses it. gatun direct: TUN mode, frames by a packet socket. gatun tunnel: IP-in-IP (4in4) to `gatun real-server` on each server. No offload: the same with `offload = false`, one write for each packet of the link's size. Kernel VXLAN: the address routed into a tunnel to the first server."""


def table(head, rows):
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def ratio(a, b):
    return a / b if a is not None and b else None


def number(value, digits):
    return "–" if value is None else f"{value:,.{digits}f}"


if __name__ == "__main__":
    main()
