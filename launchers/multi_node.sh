#!/usr/bin/env bash
# One training over several machines: run this on each of them, with the same arguments but MACHINE_RANK.
#
#   MACHINES=2 MACHINE_RANK=0 MAIN_ADDRESS=10.0.0.1 launchers/multi_node.sh zero3 \
#     experiment=logo_paper data.path=rows.jsonl output=/shared/run1
#
# The first argument names a file of launchers/accelerate/; the rest are overrides of `align train`.
# Code, data, model and `output` have to be reachable on every machine under the same path.
#
#   MACHINES          number of machines                                     (required)
#   MACHINE_RANK      this machine's number, 0 … MACHINES − 1                (required)
#   MAIN_ADDRESS      address of machine 0, reachable from all               (required)
#   MAIN_PORT         a free port there                                      (29500)
#   GPUS_PER_MACHINE  processes on each machine                              (what nvidia-smi lists)
# On machines with several networks also set NCCL_SOCKET_IFNAME (GPUs) or GLOO_SOCKET_IFNAME (CPU).
set -euo pipefail

usage() {
  echo "multi_node.sh: $1" >&2
  exit 2
}

[ "$#" -ge 1 ] || usage "name a file of launchers/accelerate/ first, e.g. zero3"
config="$(dirname "$0")/accelerate/$1.yaml"
[ -f "$config" ] || usage "there is no $config"
shift
for name in MACHINES MACHINE_RANK MAIN_ADDRESS; do
  [ -n "${!name:-}" ] || usage "$name is not set"
done
if [ -z "${GPUS_PER_MACHINE:-}" ]; then
  command -v nvidia-smi >/dev/null || usage "no nvidia-smi here: set GPUS_PER_MACHINE"
  GPUS_PER_MACHINE="$(nvidia-smi --list-gpus | wc -l)"
fi

exec accelerate launch --config_file "$config" \
  --num_machines "$MACHINES" --machine_rank "$MACHINE_RANK" \
  --num_processes "$((MACHINES * GPUS_PER_MACHINE))" \
  --main_process_ip "$MAIN_ADDRESS" --main_process_port "${MAIN_PORT:-29500}" \
  -m align.train "$@"
