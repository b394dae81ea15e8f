#!/usr/bin/env bash
# The speed pages on a GPU, each written as it is ready, in less than eight minutes; DATA_PATH holds amazon-beauty and ml-1m.
#
#   benchmarks/gpu.sh DATA_PATH [FOLDER OF RESULTS]
#
# BENCHMARKS_TINY=1 goes the same way in a minute on any machine, to see that it works; its figures say nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
data=${1:?the folder with amazon-beauty and ml-1m}
export BENCHMARKS_RESULTS=${2:-benchmarks/results/gpu}
mkdir -p "$BENCHMARKS_RESULTS"
failed=0

# seconds, script, arguments: whoever takes longer is stopped, and the others go on.
measure() {
  echo "== $2" >&2
  timeout "$1" python "benchmarks/$2.py" "${@:3}" || { echo "$2 failed or took more than $1 s" >&2; failed=1; }
}

measure 60 training --data_path="$data" --rounds=3
measure 60 inference --data_path="$data" --rounds=3
measure 60 utilisation --data_path="$data" --rounds=3
measure 90 memory --data_path="$data" --rounds=1
measure 90 first_run --seeds=1 --instructions all
measure 120 time_to_quality --data_path="$data" --threads=2 --limit=15 --only "DiffuRecSys, best recipe" \
  "RecBole's SASRec, batch_by_length"
exit $failed
