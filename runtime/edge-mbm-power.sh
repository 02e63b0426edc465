#!/usr/bin/env bash
# Steady clocks while edge-mbm runs, and what was before when it stops: "start" and "stop", for edge-mbm-power.service.
# EDGE_MBM_POWER_MODE is a mode of nvpmodel to run in ("sudo nvpmodel -p --verbose" lists them); without it the mode is
# left as it is. What was before is kept in $RUNTIME_DIRECTORY, or /run/edge-mbm-power.
set -euo pipefail

state=${RUNTIME_DIRECTORY:-/run/edge-mbm-power}

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# The number that nvpmodel -q prints in a line of its own.
current_mode() { nvpmodel -q | grep -xE '[0-9]+' || die "nvpmodel -q does not say which power mode this is"; }

# Some modes take a reboot, which it would ask for; without an answer it stays in the old one.
set_mode() {
    nvpmodel -m "$1" </dev/null || true
    [[ $(current_mode) == "$1" ]] || die "power mode $1 was not taken; it may need a reboot: sudo nvpmodel -m $1"
}

start() {
    command -v jetson_clocks >/dev/null || die "no jetson_clocks here: this is for Jetsons"
    mkdir -p "$state"
    if [[ -n ${EDGE_MBM_POWER_MODE:-} ]]; then
        # Started twice, the first time counts.
        [[ -e $state/mode ]] || current_mode >"$state/mode"
        set_mode "$EDGE_MBM_POWER_MODE"
    fi
    [[ -e $state/clocks ]] || jetson_clocks --store "$state/clocks"
    jetson_clocks
}

stop() {
    if [[ -e $state/clocks ]]; then
        jetson_clocks --restore "$state/clocks"
        rm "$state/clocks"
    fi
    if [[ -e $state/mode ]]; then
        set_mode "$(cat "$state/mode")"
        rm "$state/mode"
    fi
}

case ${1:-} in
    start | stop) "$1" ;;
    *) printf 'Use: %s start|stop\n' "$0" >&2; exit 2 ;;
esac
