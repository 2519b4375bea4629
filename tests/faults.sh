#!/bin/sh
# The faults of FAULTS.md and the threats of ARCHITECTURE.md, and their tests. Usage: faults.sh list|run
# list: each test exists exactly once and is not ignored (whoever has just run all tests needs no more).
# run: runs them all. LIMIT: seconds per test binary.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cargo=${CARGO:-cargo}
limit=${LIMIT:-1800}
mode=${1:-}
case $mode in list | run) ;; *) echo "usage: faults.sh list|run"; exit 2 ;; esac
cd "$here/.."
scratch=$(mktemp -d)
[ -n "${CI:-}" ] || export AGENT_RELAY_SKIPPED="$scratch/skipped"
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
bad=0
wrong() {
  echo "tests/FAULTS.md: $1"
  bad=$((bad + 1))
}

# Rows behind the head of the table, as "tests|proof", and from them "binary name".
sed -n '/^| --- /,$ { /^| --- /d; /^|/p; }' tests/FAULTS.md >"$scratch/rows"
[ -s "$scratch/rows" ] || { wrong "it has not one row"; exit 1; }
: >"$scratch/tests"
while IFS= read -r row; do
  case $row in
    '| '*' | `'*'` | '*' |') ;;
    *) wrong "a row is \"| fault | \`binary::path::name\` | seen to fail |\", not: $row"; continue ;;
  esac
  if [ "$(printf '%s' "$row" | tr -cd '|' | wc -c)" -ne 4 ]; then
    wrong "a row has three cells: $row"
    continue
  fi
  tests=$(printf '%s\n' "$row" | cut -d'|' -f3 | tr -d '` ' | tr ',' '\n')
  for test in $tests; do
    case $test in
      lib::?* | it::?* | sim::?* | abuse::?* | claude::?* | codex::?* | acp::?* | interop::?* | tls::?* | static::?* | tidy::?* | rights::?*)
        echo "${test%%::*} ${test#*::}" >>"$scratch/tests" ;;
      *) wrong "$test does not begin with the name of a test binary" ;;
    esac
  done
  proof=$(printf '%s\n' "$row" | cut -d'|' -f4)
  for defect in $(printf '%s\n' "$proof" | grep -o 'planted defect `[^`]*`' | cut -d'`' -f2); do
    grep -q "^$defect |" tests/defects/table.txt || wrong "$defect is not a planted defect of tests/defects/table.txt"
  done
done <"$scratch/rows"
# Tests that the threats are named with; there each stands in backquotes of its own.
sed -n '/^## Threats/,/^## Choices/p' ARCHITECTURE.md | grep -oE '`[a-z]+::[a-z_:]+`' | tr -d '`' |
  sed 's/^\([a-z]*\)::/\1 /' >"$scratch/threats"
[ -s "$scratch/threats" ] || wrong "ARCHITECTURE.md names no test of a threat"
cat "$scratch/threats" >>"$scratch/tests"
sort -u "$scratch/tests" -o "$scratch/tests"

log() { tail -n 60 "$scratch/log" | sed 's/^/    /'; }
for binary in $(cut -d' ' -f1 "$scratch/tests" | uniq); do
  case $binary in lib) target=--lib ;; *) target="--test $binary" ;; esac
  names=$(sed -n "s/^$binary //p" "$scratch/tests")
  count=$(echo "$names" | wc -l)
  if ! $cargo test --locked $target -- --list >"$scratch/list" 2>"$scratch/log" ||
    ! $cargo test --locked $target -- --list --ignored >"$scratch/ignored" 2>"$scratch/log"; then
    wrong "cargo test $target does not list its tests"
    log
    continue
  fi
  good=1
  for name in $names; do
    times=$(grep -cxF "$name: test" "$scratch/list" || :)
    [ "$times" = 1 ] || { good=0; wrong "$binary::$name names $times tests instead of one"; }
    # These two are ignored where nothing is prepared for them; make interop and make statics run them.
    case $binary in
      interop | static) grep -qxF "$name: test" "$scratch/ignored" || { good=0; wrong "$binary::$name is not ignored"; } ;;
      *) ! grep -qxF "$name: test" "$scratch/ignored" || { good=0; wrong "$binary::$name is ignored"; } ;;
    esac
  done
  [ "$mode$good" = run1 ] || continue
  case $binary in
    interop) ready="${INTEROP_DIR:-/nonexistent}/bin" ;;
    static) ready=${STATIC_BIN:-/nonexistent} ;;
    *) ready=/ ;;
  esac
  [ -e "$ready" ] || { echo "the $count tests of $binary are ignored: nothing is prepared for them"; continue; }
  code=0
  timeout -k 10 "$limit" $cargo test --locked $target -- --include-ignored --nocapture --exact $names </dev/null >"$scratch/log" 2>&1 || code=$?
  if [ "$code" -ne 0 ]; then
    wrong "cargo test $target fails (code $code; 124: not over after $limit s)"
    log
  elif ! grep -q "^test result: ok. $count passed; 0 failed; 0 ignored;" "$scratch/log"; then
    wrong "cargo test $target did not run each of its $count tests"
    log
  fi
  [ ! -s "$scratch/skipped" ] || { sed 's/|/ is ignored: /' "$scratch/skipped" && rm "$scratch/skipped"; }
done
total=$(wc -l <"$scratch/tests")
[ "$mode" = list ] && done='stand there' || done='ran'
[ "$bad" -eq 0 ] || { echo "faults: $bad wrong"; exit 1; }
echo "faults: $(wc -l <"$scratch/rows") with $total tests, all $done"
