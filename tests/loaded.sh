#!/bin/sh
# Runs all tests five times beside four busy loops: no test may depend on the speed of the machine. RUNS, LOOPS: other numbers.
# RECORD=1 writes the totals into tests/RESULTS.md.
set -u
cd "$(dirname "$0")/.."
runs=${RUNS:-5} loops=${LOOPS:-4}
commit=$(git describe --always --dirty=' and changes' 2>/dev/null || echo unknown)
scratch=$(mktemp -d)
busy=
end() {
  [ -z "$busy" ] || kill $busy 2>/dev/null
  rm -rf "$scratch"
}
trap end EXIT
trap 'exit 130' INT TERM

# Built without the load, so that only tests run beside it.
${CARGO:-cargo} test --locked --no-run || exit 1
for _ in $(seq "$loops"); do
  (while :; do :; done) &
  busy="$busy $!"
done
bad=0
for run in $(seq "$runs"); do
  began=$(date +%s) code=0
  sh tests/all.sh -- --test-threads=4 >"$scratch/log" 2>&1 || code=$?
  totals=$(sed -n 's/^tests: //p' "$scratch/log" | tail -n 1)
  echo "run $run of $runs: ${totals:-no totals} ($(($(date +%s) - began)) s)"
  [ "$code" -eq 0 ] || { bad=$((bad + 1)); sed -n '/^failures:/,/^test result/p; /^error/p' "$scratch/log"; }
  failed=$(sed -n 's/^failed: //p' "$scratch/log" | paste -sd ' ')
  echo "| $run | $loops | $totals | ${failed:-–} | $(($(date +%s) - began)) s | $commit |" >>"$scratch/table"
done
echo "loaded: $runs runs beside $loops busy loops, $bad with failures"

if [ "${RECORD:-}" = 1 ]; then
  results=tests/RESULTS.md
  others=$(awk '/^## / { old = $0 == "## Loaded machine" } !old' "$results")
  {
    printf '%s\n\n## Loaded machine\n\n`make loaded RECORD=1`: all tests, again and again, beside busy loops on %s cores.\n\n' "$others" "$(nproc)"
    echo '| run | busy loops | totals | failed | time | commit |'
    echo '| --- | --- | --- | --- | --- | --- |'
    cat "$scratch/table"
  } >"$scratch/new"
  cat "$scratch/new" >"$results"
  echo "written into $results"
fi
[ "$bad" -eq 0 ]
