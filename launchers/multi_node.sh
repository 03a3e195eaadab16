#!/usr/bin/env bash
# One training over several machines: run this on each of them, with the same arguments.
#
#   MACHINES=2 MACHINE_RANK=0 MAIN_ADDRESS=10.0.0.1 launchers/multi_node.sh zero3 \
#     experiment=logo_paper data.path=rows.jsonl output=/shared/run1
#
# The first argument names a file of launchers/accelerate/; the rest are overrides of `align train`.
# Code, data, model and `output` have to be reachable on every machine under the same path.
#
# From the environment; where a name of ours is not set, what schedulers set is read:
#   MACHINES          number of machines    (NNODES, PET_NNODES, SLURM_NNODES, OMPI_COMM_WORLD_SIZE)
#   MACHINE_RANK      this machine's number, from 0 on
#                                           (NODE_RANK, PET_NODE_RANK, SLURM_NODEID, OMPI_COMM_WORLD_RANK)
#   MAIN_ADDRESS      address of machine 0, reachable from all
#                                           (MASTER_ADDR, PET_MASTER_ADDR, the first of SLURM_JOB_NODELIST)
#   MAIN_PORT         a free port there     (MASTER_PORT, PET_MASTER_PORT; one by SLURM_JOB_ID; 29500)
#   GPUS_PER_MACHINE  processes on each machine
#                     (what CUDA_VISIBLE_DEVICES or else nvidia-smi lists; for cpu/… what its file says)
#   RUN_ID            one name for all processes: ${oc.env:RUN_ID} in overrides, and the folder of the logs
#                                           (SLURM_JOB_ID, PBS_JOBID, LSB_JOBID; MAIN_ADDRESS-MAIN_PORT)
#   LOG_FOLDER        LOG_FOLDER/RUN_ID/machine-R/… has stdout.log and stderr.log of every process  (logs)
#   GRACE_SECONDS     from SIGTERM, which every process is sent, to SIGKILL  (120)
# On machines with several networks also set NCCL_SOCKET_IFNAME (what GPUs send each other) and GLOO_SOCKET_IFNAME (what
# the processes on the CPUs tell each other).
#
# The first process that fails ends the job: its message is shown on every machine that shares LOG_FOLDER, and
# all end with a code that is not 0. After SIGTERM the running step is saved, and the code is 143.
set -euo pipefail

usage() {
  echo "multi_node.sh: $1" >&2
  exit 2
}

# The value of the first of these variables that has one.
first() {
  local name
  for name in "$@"; do
    if [ -n "${!name:-}" ]; then
      echo "${!name}"
      return
    fi
  done
}

number() { # NAME VALUE: refuses what is no whole number
  [ -n "$2" ] || usage "$1 is not set"
  [[ "$2" =~ ^[0-9]+$ ]] || usage "$1=$2 is no whole number"
}

decimal() { # VALUE: without the zeros before it, for which bash would take 08 as octal
  echo "$((10#$1))"
}

main_address() {
  local found
  found="$(first MAIN_ADDRESS MASTER_ADDR PET_MASTER_ADDR)"
  if [ -z "$found" ] && [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    # Not through `head`, which may end scontrol by a broken pipe.
    read -r found < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  fi
  echo "$found"
}

main_port() {
  local found
  found="$(first MAIN_PORT MASTER_PORT PET_MASTER_PORT)"
  # Jobs that share a machine must not share a port.
  if [ -z "$found" ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    found=$((20000 + 10#$SLURM_JOB_ID % 20000))
  fi
  echo "${found:-29500}"
}

processes_per_machine() {
  if [ -n "${GPUS_PER_MACHINE:-}" ]; then
    echo "$GPUS_PER_MACHINE"
  elif [[ "$config" == */cpu/* ]]; then
    sed -n 's/^num_processes: *\([0-9]*\).*/\1/p' "$config"
  elif [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . # nvidia-smi lists hidden ones too
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi --list-gpus | wc -l
  fi
}

[ "$#" -ge 1 ] || usage "name a file of launchers/accelerate/ first, e.g. zero3"
config="$(dirname "$0")/accelerate/$1.yaml"
[ -f "$config" ] || usage "there is no $config"
shift
machines="$(first MACHINES NNODES PET_NNODES SLURM_NNODES OMPI_COMM_WORLD_SIZE)"
rank="$(first MACHINE_RANK NODE_RANK PET_NODE_RANK SLURM_NODEID OMPI_COMM_WORLD_RANK)"
number MACHINES "$machines"
number MACHINE_RANK "$rank"
machines="$(decimal "$machines")" rank="$(decimal "$rank")"
[ "$rank" -lt "$machines" ] || usage "MACHINE_RANK=$rank, but ranks of $machines machines end at $((machines - 1))"
address="$(main_address)"
[ -n "$address" ] || usage "MAIN_ADDRESS is not set"
port="$(main_port)"
number MAIN_PORT "$port"
each="$(processes_per_machine)"
[ -n "$each" ] || usage "no nvidia-smi here: set GPUS_PER_MACHINE"
number GPUS_PER_MACHINE "$each"
each="$(decimal "$each")"
for program in accelerate python; do
  command -v "$program" >/dev/null || usage "there is no $program on PATH: activate the environment of the toolkit"
done

RUN_ID="$(first RUN_ID SLURM_JOB_ID PBS_JOBID LSB_JOBID)"
export RUN_ID="${RUN_ID:-$address-$port}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${GRACE_SECONDS:-120}"
export TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE='[rank ${rank}] '
job="${LOG_FOLDER:-logs}/$RUN_ID"
logs="$job/machine-$rank"
mkdir -p "$logs"
touch "$logs/started"

# Notes that machines leave each other in $job; those of an earlier start do not count.
leave() { # NAME TEXT: only the first of a kind stays
  [ "$job/$1" -nt "$logs/started" ] || rm -f "$job/$1"
  (set -o noclobber && echo "$2" >"$job/$1") 2>/dev/null || true
}
told_of() { [ "$job/$1" -nt "$logs/started" ]; }

# Notes the earliest error that a process of this machine has left where torch's launcher wants it.
note_error() {
  local found message
  found="$(find "$logs" -name error.json -newer "$logs/started" -printf '%T@ %p\n' | sort -n | sed -n '1s/^[^ ]* //p')"
  [ -n "$found" ] || return 0
  # A file that is being written is read next time.
  message="$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["message"]["message"])' "$found" \
    2>/dev/null)" || return 0
  leave failed "rank $((rank * each + $(basename "$(dirname "$found")"))) on machine $rank: $message"
}

launcher=""
stop() { [ -z "$launcher" ] || kill -TERM "$launcher" 2>/dev/null || true; }
# Before the launcher is there: a signal that comes while it starts is passed on by the loop below.
trap 'leave stopped "machine $rank was told to stop"; stop' TERM INT HUP

# Job control: the launcher is not in the terminal's group and does not inherit an ignored SIGINT.
set -m
accelerate launch --config_file "$config" \
  --num_machines "$machines" --machine_rank "$rank" --num_processes "$((machines * each))" \
  --main_process_ip "$address" --main_process_port "$port" --log_dir "$logs" --tee 3 \
  -m align.train "$@" &
launcher=$!
# What came before the launcher had a number.
! told_of stopped || stop

ending=no
while kill -0 "$launcher" 2>/dev/null; do
  sleep 0.5 >/dev/null 2>&1 &
  wait "$!" || true # a signal ends this wait at once
  told_of stopped || note_error
  if [ "$ending" = no ] && told_of failed; then
    ending=yes
    stop
  fi
done
code=0
wait "$launcher" || code=$?
[ "$code" -ne 0 ] || exit 0

note_error
if told_of failed; then
  echo "multi_node.sh: the job ended because of $(cat "$job/failed")" >&2
elif told_of stopped; then
  echo "multi_node.sh: $(cat "$job/stopped"); the same command goes on" >&2
  exit 143
else
  leave failed "machine $rank, whose launcher ended with code $code; its report names the process"
  echo "multi_node.sh: the job ended because of $(cat "$job/failed")" >&2
fi
exit 1
