#!/bin/sh
# Plants each defect of table.txt, one at a time, and runs the test that must catch it. Usage: run.sh [name...]
# One build holds them all (`--cfg planted`); AGENT_RELAY_PLANTED names the one that is planted. LIMIT: seconds per test.
# RECORD=1 writes the table into tests/RESULTS.md when all were run and caught.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cargo=${CARGO:-cargo}
limit=${LIMIT:-300}
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$top/target}/defects"
export RUSTFLAGS="${RUSTFLAGS:+$RUSTFLAGS }--cfg planted"
unset AGENT_RELAY_PLANTED
commit=$(cd "$top" && git describe --always --dirty=' and changes' 2>/dev/null || echo unknown)
# Tests that fail leave their folders, and where they hang their processes; both end here.
scratch=$(mktemp -d)
export TMPDIR="$scratch/t"
mkdir "$TMPDIR"
end_left() {
  for pid in $(grep -lz "^AGENT_RELAY_HOME=$TMPDIR/" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3); do
    kill -KILL "$pid" 2>/dev/null || :
  done
}
trap 'end_left; rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

# Rows as "name|clause|target|test|patch"; those with a patch come last, since they build anew.
sed -n 's/ *| */|/g; /^[^#]/p' "$here/table.txt" |
  awk -F'|' '{ at = match($3, / [^ ]*$/); print ($4 != "") "|" $1 "|" $2 "|" substr($3, 1, at - 1) "|" substr($3, at + 1) "|" $4 }' |
  sort -s -t'|' -k1,1 | cut -d'|' -f2- >"$scratch/all"
for name in "$@"; do
  grep "^$name|" "$scratch/all" >>"$scratch/rows" || { echo "there is no \"$name\" in $here/table.txt"; exit 2; }
done
[ $# -gt 0 ] || cp "$scratch/all" "$scratch/rows"

# The log of a run goes to a file, its code is the answer.
run() { # seconds, folder, arguments of cargo test
  seconds=$1 folder=$2
  shift 2
  code=0
  (cd "$folder" && exec timeout -k 10 "$seconds" $cargo test --locked "$@") </dev/null >"$scratch/log" 2>&1 || code=$?
  end_left
  return "$code"
}
fail() { # what, lines of the log
  echo "$1"
  tail -n "${2:-40}" "$scratch/log" | sed 's/^/    /'
}

echo "building with planted defects ($CARGO_TARGET_DIR)"
run 3600 "$top" --no-run || { fail "the build with --cfg planted failed"; exit 1; }

# A test that is red anyway catches nothing: all must pass once without a defect.
cut -d'|' -f3 "$scratch/rows" | sort -u >"$scratch/targets"
while read -r target; do
  tests=$(awk -F'|' -v target="$target" '$3 == target { print $4 }' "$scratch/rows" | sort -u)
  count=$(echo "$tests" | wc -l)
  echo "without a defect: cargo test $target ($count)"
  if ! run $((limit * 2)) "$top" $target -- --exact $tests; then
    fail "a test fails or hangs without a defect: cargo test $target"
    exit 1
  fi
  grep -q "^test result: ok. $count passed; 0 failed; 0 ignored;" "$scratch/log" ||
    { fail "not each of these is one test that runs: cargo test $target -- --exact $(echo $tests)"; exit 1; }
done <"$scratch/targets"

# A copy of the tree with a patch: for what no switch reaches. It has a target folder of its own, since Cargo takes programs of
# two copies of a tree for the same ones, and its files are always newer than what was built of it before.
built=$CARGO_TARGET_DIR
tree=$CARGO_TARGET_DIR/patched/tree
patched() { # patch, the part to build
  rm -rf "$tree"
  mkdir -p "$tree"
  (cd "$top" && git ls-files -z -co --exclude-standard | xargs -0 tar cf - --ignore-failed-read 2>/dev/null) | tar xmf - -C "$tree"
  (cd "$tree" && GIT_CEILING_DIRECTORIES="$built/patched" git apply --whitespace=nowarn "$here/$1") >"$scratch/log" 2>&1 ||
    { fail "$1 does not apply"; return 1; }
  export CARGO_TARGET_DIR="$built/patched"
  run 3600 "$tree" $2 --no-run || { fail "$1 does not build"; return 1; }
}

caught=0 missed=0
: >"$scratch/table"
while IFS='|' read -r name clause target test patch; do
  began=$(date +%s)
  folder=$top
  export CARGO_TARGET_DIR="$built"
  if [ -n "$patch" ]; then
    patched "$patch" "$target" || { missed=$((missed + 1)); continue; }
    folder=$tree
  else
    export AGENT_RELAY_PLANTED="$name"
  fi
  code=0
  run "$limit" "$folder" $target -- --exact "$test" || code=$?
  unset AGENT_RELAY_PLANTED
  # Only the word of the test itself counts: no failed build, no crash of the runner of tests, no timeout.
  if [ "$code" != 0 ] && grep -q "^test result: FAILED. 0 passed; 1 failed;" "$scratch/log"; then
    caught=$((caught + 1))
    echo "$name: caught by cargo test $target $test ($(($(date +%s) - began)) s)"
    echo "| \`$name\`: $clause | \`cargo test $target $test\` | $commit |" >>"$scratch/table"
    continue
  fi
  missed=$((missed + 1))
  case $code in
    0) echo "$name: MISSED by cargo test $target $test" ;;
    124 | 137) fail "$name: MISSED: cargo test $target $test did not end in $limit s" ;;
    *) fail "$name: MISSED: cargo test $target $test ended with $code, but not because its test failed" ;;
  esac
done <"$scratch/rows"
echo "$caught caught, $missed missed"
[ "$missed" -eq 0 ] || exit 1

if [ "${RECORD:-}" = 1 ] && [ $# -eq 0 ]; then
  results=$top/tests/RESULTS.md
  others=$(awk '/^## / { old = $0 == "## Planted defects" } !old' "$results")
  {
    printf '%s\n\n## Planted defects\n\nEach was planted and caught: `make defects RECORD=1` (%s in all).\n\n' "$others" "$caught"
    echo '| defect | test | commit |'
    echo '| --- | --- | --- |'
    sort "$scratch/table"
  } >"$scratch/new"
  cat "$scratch/new" >"$results"
  echo "written into $results"
fi
