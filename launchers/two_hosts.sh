#!/usr/bin/env bash
# Two hosts on one machine, to try a command of several machines without a cluster: two network namespaces joined by a
# virtual cable, the command in each of them. Linux; needs root and iproute2.
#
#   launchers/two_hosts.sh launchers/multi_node.sh cpu/ddp data.path=rows.jsonl output=run
#
# The hosts are 10.0.0.1 and 10.0.0.2, seen by nobody else. The command finds MACHINES, MACHINE_RANK, MAIN_ADDRESS
# and GLOO_SOCKET_IFNAME in its environment. SIGTERM is passed on to both. The code is that of the first host whose
# code is not 0; 77 where namespaces are not allowed.
set -euo pipefail

[ "$#" -ge 1 ] || {
  echo "two_hosts.sh: name a command to run in both hosts" >&2
  exit 2
}
name="align-$$"
pids=()

remove() { # NAME: both hosts of a start, with what still runs in them, which would keep them alive
  for rank in 0 1; do
    if ip netns list | grep -qw "$1-$rank"; then
      ip netns pids "$1-$rank" | xargs -r kill -KILL 2>/dev/null || true
      ip netns del "$1-$rank"
    fi
  done
}
# What a start has left that was itself killed.
for old in $(ip netns list 2>/dev/null | sed -n 's/^align-\([0-9]*\)-[01].*/\1/p' | sort -u); do
  kill -0 "$old" 2>/dev/null || remove "align-$old"
done
trap 'remove "$name"' EXIT
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT HUP

make_hosts() {
  ip netns add "$name-0" && ip netns add "$name-1" &&
    ip link add veth0 netns "$name-0" type veth peer name veth1 netns "$name-1" || return
  for rank in 0 1; do
    ip -n "$name-$rank" addr add "10.0.0.$((rank + 1))/24" dev "veth$rank" &&
      ip -n "$name-$rank" link set "veth$rank" up && ip -n "$name-$rank" link set lo up || return
  done
}
if ! make_hosts; then
  echo "two_hosts.sh: network namespaces are not allowed here" >&2
  exit 77
fi

set -m
for rank in 0 1; do
  MACHINES=2 MACHINE_RANK=$rank MAIN_ADDRESS=10.0.0.1 GLOO_SOCKET_IFNAME=veth$rank \
    ip netns exec "$name-$rank" "$@" &
  pids+=("$!")
done
code=0
for pid in "${pids[@]}"; do
  one=0
  while kill -0 "$pid" 2>/dev/null; do
    wait "$pid" || true
  done
  wait "$pid" || one=$?
  [ "$code" -ne 0 ] || code=$one
done
exit "$code"
