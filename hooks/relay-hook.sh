#!/bin/sh
# Reports an event of a provider session to its runner: relay-hook.sh EVENT, payload on standard input.
# For any provider that can run a command at an event; `agent-relay hook --help` lists the events.
# Without a runner it exits with 0; where the binary cannot be run it posts the bare status.
[ -n "${AGENT_RELAY_RUNNER_PORT-}" ] || exit 0
event=$1
# AGENT_RELAY_HOOKS lists the events that are reported; a session over its standard streams needs only stop.
case " ${AGENT_RELAY_HOOKS:-$event} " in *" $event "*) ;; *) exit 0 ;; esac

bare() {
  case $event in
    busy | user-prompt-submit | subagent-start | pre-compact) status=busy ;;
    idle | stop | stop-failure | session-start | post-compact) status=idle ;;
    error) status=error ;;
    offline | session-end) status=offline ;;
    *) exit 0 ;;
  esac
  # The token goes in by standard input: arguments can be seen by others. It goes to no proxy.
  printf 'header = "Authorization: Bearer %s"\n' "${AGENT_RELAY_RUNNER_TOKEN-}" |
    curl -q --noproxy '*' -s -o /dev/null -m 2 -K - -H 'Content-Type: application/json' \
      -d "{\"status\":\"$status\",\"providerSessionId\":\"${AGENT_RELAY_PROVIDER_SESSION_ID-}\"}" \
      "http://127.0.0.1:$AGENT_RELAY_RUNNER_PORT/status" 2>/dev/null
  exit 0
}

# Also a binary that is there and cannot be run: most shells end with a failed exec, and by the trap; bash goes on if asked.
trap bare EXIT
shopt -s execfail 2>/dev/null
bin=${AGENT_RELAY_BIN:-agent-relay}
command -v "$bin" >/dev/null 2>&1 && exec "$bin" hook "$event" 2>/dev/null
