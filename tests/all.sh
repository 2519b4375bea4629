#!/bin/sh
# Runs tests and ends with one line of totals. Usage: all.sh [arguments of cargo test]. All suites run, also after one has failed.
# A test that cannot run here says so in a list (tests/common/skip.rs) and counts as ignored, with its reason, not as passed.
set -u
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
export AGENT_RELAY_SKIPPED="$scratch/skipped" AGENT_RELAY_RAN="$scratch/ran"
: >"$AGENT_RELAY_SKIPPED"
: >"$AGENT_RELAY_RAN"
echo 1 >"$scratch/code"

{
  $cargo test --locked --no-fail-fast "$@"
  echo $? >"$scratch/code"
} | {
  all_passed=0 all_failed=0 all_ignored=0 failures=
  while IFS= read -r line; do
    case $line in
      'test '*' ... ok')
        name=${line#test }
        name=${name% ... ok}
        reason=
        [ ! -s "$AGENT_RELAY_SKIPPED" ] || reason=$(sed -n "s/^$name|//p" "$AGENT_RELAY_SKIPPED" | head -n 1)
        [ -z "$reason" ] || line="test $name ... ignored, $reason" ;;
      'test '*' ... FAILED') failures="$failures ${line#test }" && failures=${failures% ... FAILED} ;;
      'test result: '*' passed; '*)
        rest=${line#test result: *. }
        passed=${rest%% passed;*}
        rest=${rest#* passed; }
        failed=${rest%% failed;*}
        rest=${rest#* failed; }
        ignored=${rest%% ignored;*}
        skipped=$(cut -d'|' -f1 "$AGENT_RELAY_SKIPPED" | sort -u | wc -l)
        : >"$AGENT_RELAY_SKIPPED"
        passed=$((passed - skipped)) ignored=$((ignored + skipped))
        line="${line%%. *}. $passed passed; $failed failed; $ignored ignored; ${rest#* ignored; }"
        all_passed=$((all_passed + passed)) all_failed=$((all_failed + failed)) all_ignored=$((all_ignored + ignored)) ;;
    esac
    printf '%s\n' "$line"
  done
  # Scenarios that drove a real tool, each once whatever it started (tests/common/ran.rs).
  sort -u "$AGENT_RELAY_RAN" | cut -d'|' -f1 | uniq -c | while read -r count tool; do
    echo "scenarios of $tool: $count"
  done
  [ -z "$failures" ] || printf 'failed: %s\n' $failures
  echo "tests: $all_passed passed, $all_failed failed, $all_ignored ignored"
}
exit "$(cat "$scratch/code")"
