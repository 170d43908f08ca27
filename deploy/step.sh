#!/bin/sh
# Runs one slow, quiet command as one line of progress: step.sh "message" command...
# Says every 15 seconds that it still runs; shows what the command printed only when it fails. Needs no terminal.
set -u
message=$1
shift
log=$(mktemp "${TMPDIR:-/tmp}/diptych-step.XXXXXX") || exit 1
began=$(date +%s)
trap 'kill "$child" 2>/dev/null; rm -f "$log"; exit 130' INT TERM HUP
trap 'rm -f "$log"' EXIT

echo "$message ..."
"$@" >"$log" 2>&1 &
child=$!
ticks=0
while kill -0 "$child" 2>/dev/null; do
    sleep 0.2
    ticks=$((ticks + 1))
    if [ $((ticks % 75)) -eq 0 ]; then echo "    ... still at it, $(($(date +%s) - began)) s"; fi
done
if wait "$child"; then
    echo "    done in $(($(date +%s) - began)) s"
else
    status=$?
    cat "$log" >&2
    echo "failed (exit $status): $*" >&2
    exit "$status"
fi
