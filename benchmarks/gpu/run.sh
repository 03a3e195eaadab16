#!/usr/bin/env bash
# On a bare GPU machine: installs the carried wheels (collect.sh) into .site, without a network, and starts the stages.
#   benchmarks/gpu/run.sh --minutes 8 --out "$OUT"
#   benchmarks/gpu/run.sh install              # only what was carried, where more is still to come
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
joined=$(mktemp -d)
trap 'rm -rf "$joined"' EXIT
# Wheels that were cut into parts come whole once all their parts are here.
while read -r first; do
  name=$(basename "${first%.part00}")
  find .whl -name "$name.part*" -printf '%f\t%p\n' | sort | cut -f2 | xargs cat > "$joined/$name"
  "$PYTHON" -m zipfile --test "$joined/$name" > /dev/null 2>&1 || { echo "$name: parts are missing" >&2; rm "$joined/$name"; }
done < <(find .whl -name '*.whl.part00' 2>/dev/null)
mapfile -t wheels < <(find .whl "$joined" -type f -name '*.whl' 2>/dev/null)
if [ "${#wheels[@]}" -gt 0 ]; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target .site "${wheels[@]}"
fi
if [ "${1:-}" = install ]; then exit; fi
export PYTHONPATH="$PWD/.site:$PWD" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$PYTHON" -m benchmarks.gpu "$@"
