#!/bin/sh
# Reports an event of a provider session to its runner: relay-hook.sh EVENT, payload on standard input.
# For any provider that can run a command at an event; `agent-relay hook --help` lists the events.
# It leaves quietly where no runner is, and falls back to the bare status where the binary cannot be run.
[ -n "${AGENT_RELAY_RUNNER_PORT-}" ] || exit 0
# A list of the events that are told; a session over its standard streams needs no other than stop.
case " ${AGENT_RELAY_HOOKS-$1} " in *" $1 "*) ;; *) exit 0 ;; esac
bin=${AGENT_RELAY_BIN:-agent-relay}
command -v "$bin" >/dev/null 2>&1 && exec "$bin" hook "$1"
case $1 in
  busy | user-prompt-submit | subagent-start | pre-compact) status=busy ;;
  idle | stop | stop-failure | session-start | post-compact) status=idle ;;
  error) status=error ;;
  offline | session-end) status=offline ;;
  *) exit 0 ;;
esac
# The token goes in by standard input: arguments can be seen by others.
printf 'header = "Authorization: Bearer %s"\n' "${AGENT_RELAY_RUNNER_TOKEN-}" |
  curl -s -o /dev/null -m 2 -K - -H 'Content-Type: application/json' \
    -d "{\"status\":\"$status\",\"providerSessionId\":\"${AGENT_RELAY_PROVIDER_SESSION_ID-}\"}" \
    "http://127.0.0.1:$AGENT_RELAY_RUNNER_PORT/status" 2>/dev/null
exit 0
