#!/bin/sh
# A host in small: hub and orchestrator of this machine on a home of their own, one demo agent that is spawned, shown, asked, survives
# its orchestrator and is stopped. Usage: run-host.sh BINARY
set -eu
bin=$1
home=$(mktemp -d)
export AGENT_RELAY_HOME="$home/relay" HOME="$home"
mkdir -p "$home/project"
hub='' orchestrator=''
end() {
  [ -z "$orchestrator" ] || kill "$orchestrator" 2>/dev/null || :
  [ -z "$hub" ] || kill "$hub" 2>/dev/null || :
  wait
  rm -rf "$home"
}
trap end EXIT
trap 'exit 130' INT TERM
say() { printf '\n\033[1m$ agent-relay %s\033[0m\n' "$*"; }
wait_for() {
  tries=0
  until "$@" >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || { echo "waited in vain for: $*" >&2; exit 1; }
    sleep 0.1
  done
}

say hub
"$bin" hub --any-port & hub=$!
wait_for "$bin" hub status
say orchestrator --base-dir "$home/project"
"$bin" orchestrator --base-dir "$home/project" & orchestrator=$!
wait_for "$bin" sessions
say 'spawn --label web --approval open acp -- agent-relay demo-agent'
"$bin" spawn --cwd "$home/project" --agent-id web --label web --approval open acp -- agent-relay demo-agent
say sessions
"$bin" sessions
say 'send web --wait 30 hello'
"$bin" send web --wait 30 hello
printf '\nThe orchestrator is killed and started again; the session stays.\n'
kill -9 "$orchestrator"
wait "$orchestrator" 2>/dev/null || :
"$bin" orchestrator --base-dir "$home/project" & orchestrator=$!
wait_for "$bin" sessions
say sessions
"$bin" sessions
say 'send web --wait 30 "still there?"'
"$bin" send web --wait 30 "still there?"
say 'logs web'
"$bin" logs web
say 'diagnose web'
"$bin" diagnose web
say 'stop web'
"$bin" stop web
say 'sessions --ended'
"$bin" sessions --ended
