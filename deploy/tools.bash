#!/usr/bin/env bash
# What several scripts need to get their tools; sourced, never run. 77 is the status of what cannot be done on this machine through no fault of
# the code, which `deploy/test` counts as skipped.

# Ends a command, and the processes that it started, after so many seconds, or when this script is told to end.
limit() {
  local code=0
  timeout --kill-after=20 "$@" &
  # shellcheck disable=SC2064 # this process, whatever $! is by then
  trap "kill $! 2>/dev/null; exit 130" INT TERM
  wait $! || code=$?
  trap - INT TERM
  if ((code == 124 || code == 137)); then printf 'ended at its limit of %s s: %s\n' "$1" "${*:2}" >&2; fi
  return "$code"
}

# A step that cannot run here, through no fault of the code.
skip() {
  printf 'skipped: %s\n' "$*"
  return 77
}

# install [PACKAGE...]: Debian packages, as root or by sudo; with none only the lists of what there is are fetched.
install() {
  local as_root=()
  command -v apt-get >/dev/null || skip "needs the packages $* (no apt-get here to install them)" || return
  if ((EUID)); then
    command -v sudo >/dev/null || skip "needs the packages $* (neither root nor sudo)" || return
    as_root=(sudo)
    if [[ ! -t 0 ]]; then as_root+=(-n); fi
    "${as_root[@]}" true || skip "needs the packages $* (sudo refused)" || return
  fi
  as_root+=(env DEBIAN_FRONTEND=noninteractive)
  limit 300 "${as_root[@]}" apt-get update -qq || return
  if (($# == 0)); then return; fi
  limit 600 "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
