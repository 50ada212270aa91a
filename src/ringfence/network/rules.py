"""The packet rules of the router: static text, loaded once. No sandbox adds, changes or removes one.

What tells sandboxes apart is not here: an address is believed because the route back to it is the wire it came by.
"""

from __future__ import annotations

import json
import subprocess
from ipaddress import IPv4Address
from typing import Any, Final

from ringfence.domain.errors import SandboxRefused

NFT: Final = "/usr/sbin/nft"
NFT_SECONDS: Final = 20.0
GATEWAY: Final = IPv4Address("198.18.0.1")  # of all sandboxes alike; the benchmark range is nobody's real network
GATE_PORT: Final = 1
NAMES_PORT: Final = 53
WIRE: Final = "rf"  # the router's end of each sandbox's wire is called rf and a number
MOST_CONNECTIONS: Final = 512  # of one sandbox at a time
NEW_PER_SECOND: Final = 500
QUESTIONS_PER_SECOND: Final = 500
COUNTERS: Final = (
    "stray", "ipv6", "spoofed", "wide", "datagrams", "pings", "unknown",
    "crowded", "hasty", "broken", "unasked", "forwarded",
)  # fmt: skip

RULESET: Final = f"""
table inet ringfence {{
{"".join(f"  counter {name} {{ }}{chr(10)}" for name in COUNTERS)}
  set busy {{ type ipv4_addr; size 65536; flags dynamic; }}
  set pace {{ type ipv4_addr; size 65536; flags dynamic, timeout; timeout 30s; }}
  set questions {{ type ipv4_addr; size 65536; flags dynamic, timeout; timeout 30s; }}

  # First of all, before a connection is noted: only what could be meant for the gate is looked at further.
  chain early {{
    type filter hook prerouting priority raw; policy drop;
    iifname != "{WIRE}*" counter name stray drop
    meta nfproto != ipv4 counter name ipv6 drop
    fib saddr . iif oif 0 counter name spoofed drop
    meta pkttype != host counter name wide drop
    fib daddr type {{ broadcast, multicast, anycast }} counter name wide drop
    meta l4proto tcp accept
    udp dport 53 accept
    meta l4proto udp counter name datagrams reject with icmpx type port-unreachable
    meta l4proto icmp counter name pings drop
    counter name unknown drop
  }}

  # Every connection ends at the gate, wherever it meant to go; the gate is told where that was.
  chain turn {{
    type nat hook prerouting priority dstnat; policy accept;
    meta nfproto ipv4 udp dport 53 dnat ip to {GATEWAY}:{NAMES_PORT}
    meta nfproto ipv4 tcp dport 53 dnat ip to {GATEWAY}:{NAMES_PORT}
    meta nfproto ipv4 meta l4proto tcp dnat ip to {GATEWAY}:{GATE_PORT}
  }}

  chain arrive {{
    type filter hook input priority filter; policy drop;
    ct state invalid counter name broken drop
    meta l4proto udp add @questions {{ ip saddr limit rate over {QUESTIONS_PER_SECOND}/second \
burst {QUESTIONS_PER_SECOND} packets }} counter name hasty drop
    ct state established accept
    ct state != new counter name broken drop
    add @pace {{ ip saddr limit rate over {NEW_PER_SECOND}/second burst {2 * NEW_PER_SECOND} packets }} \
counter name hasty drop
    meta l4proto tcp add @busy {{ ip saddr ct count over {MOST_CONNECTIONS} }} \
counter name crowded reject with tcp reset
    tcp dport {{ {GATE_PORT}, {NAMES_PORT} }} accept
    udp dport {NAMES_PORT} accept
    counter name unasked
  }}

  # Nothing is passed from one interface to another. There is also no route, and no forwarding.
  chain pass {{
    type filter hook forward priority filter; policy drop;
    counter name forwarded
  }}

  chain leave {{
    type filter hook output priority filter; policy drop;
    ct state established,related accept
    icmp type destination-unreachable limit rate 1000/second burst 1000 packets accept
    meta l4proto tcp tcp flags & rst == rst accept
  }}
}}
"""


def load() -> None:
    """Put the rules in force in the caller's network namespace. Raises SandboxRefused."""
    _nft(["-f", "-"], RULESET)


def counts() -> dict[str, int]:
    """How many packets met each way to be dropped, in the caller's network namespace."""
    listed: dict[str, Any] = json.loads(_nft(["-j", "list", "counters"], ""))
    rows = (row["counter"] for row in listed["nftables"] if "counter" in row)
    return {row["name"]: int(row["packets"]) for row in rows}


def _nft(words: list[str], text: str) -> str:
    try:
        done = subprocess.run(
            [NFT, *words], input=text, env={}, capture_output=True, text=True, timeout=NFT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxRefused(
            f"nft does not run: {error}", code="no_packet_filter", remediation="install Debian's package nftables"
        ) from None
    if done.returncode:
        raise SandboxRefused(f"nft refuses the rules: {done.stderr.strip():.500}", code="no_packet_filter")
    return done.stdout
