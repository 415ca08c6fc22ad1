#!/usr/bin/env bash
# What the scripts beside it share; sourced, never run.
#
# Where files of this machine are looked at, their paths begin with $root, which is empty outside of the tests.
root=${SPLITRPC_ROOT:-}
# shellcheck disable=SC2034 # for those that source this
readonly root maintainer='The splitrpc authors <splitrpc@splitrpc.invalid>'
card=ubuntu@192.168.100.2 dry_run=false failed=0 warned=0

say() { printf '%s\n' "$*"; }

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

misused() {
  printf '%s: %s; see --help\n' "${0##*/}" "$*" >&2
  exit 2
}

# The comment at the top of the script, which has gone to the root of the repository.
help() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "deploy/bluefield/${0##*/}"
  exit 0
}

# Findings, a line each: what was seen, and what to do where it falls short.
ok() { printf 'ok    %s\n' "$*"; }
warn() { printf 'warn  %s\n' "$*" && warned=$((warned + 1)); }
fail() { printf 'FAIL  %s\n' "$*" && failed=$((failed + 1)); }

# act WHAT COMMAND...: does it and says so, or with --dry-run says that it would.
act() {
  if $dry_run; then
    printf 'would %s\n' "$1"
  else
    printf 'now   %s\n' "$1"
    "${@:2}"
  fi
}

# The card is spoken to over one connection, so that a password is asked for once.
connect() {
  [[ $card == *@* && $card != -* ]] || misused "--card takes USER@HOST, not '$card'"
  connection=$(mktemp -d)
  ssh=(ssh -o "ControlPath=$connection/%C" -o ControlMaster=auto -o ControlPersist=60 -o ConnectTimeout=10)
  trap disconnect EXIT
}

disconnect() {
  "${ssh[@]}" -O exit "$card" 2>/dev/null || true
  rm -rf "$connection"
}

# on_card COMMAND...
on_card() { "${ssh[@]}" "$card" "$(printf '%q ' "$@")"; }

# The same as root, which `card_facts` tells whether the user is.
root_on_card() {
  if [[ ${card_facts[uid]} == 0 ]]; then on_card "$@"; else on_card sudo -n "$@"; fi
}

# put_on_card MODE PATH, from standard input; remove_from_card PATH, with its folder where that is empty then.
put_on_card() {
  # shellcheck disable=SC2016 # the card's shell is to see these
  root_on_card sh -c 'mkdir -p "${2%/*}" && cat >"$2" && chmod "$1" "$2"' put "$1" "$2"
}
remove_from_card() {
  # shellcheck disable=SC2016
  root_on_card sh -c 'rm -f "$1"; rmdir "${1%/*}" 2>/dev/null || true' remove "$1"
}

# Whole numbers of a list such as 0-3,7, one a line.
numbers() {
  local part
  for part in ${1//,/ }; do seq "${part%-*}" "${part#*-}"; done
}

# learn FACTS: into that associative array, what `probe` printed.
learn() {
  local -n into=$1
  local key value
  # shellcheck disable=SC2034 # it is the caller's
  while IFS='=' read -r key value; do into["$key"]=$value; done
}

declare -A card_facts=() host_facts=()

# Looks at the card; what follows needs it.
probe_card() {
  local seen
  seen=$("${ssh[@]}" "$card" 'bash -s' <"${BASH_SOURCE[0]%/*}/probe") || return
  card_facts=()
  learn card_facts <<<"$seen"
}

# What must be true of a card that nic-app is to run on.
check_card() {
  if ! probe_card; then
    fail "$card does not answer over ssh: is it in DPU mode and up (cat /dev/rshim0/misc), has tmfifo_net0 here an address" \
      "(ip address add 192.168.100.1/30 dev tmfifo_net0), does it know your key (ssh-copy-id $card)?"
    return
  fi
  if [[ ${card_facts[machine]} == aarch64 && -n ${card_facts[image]} ]]; then
    ok "$card is a BlueField: ${card_facts[image]}, kernel ${card_facts[kernel]}"
  else
    fail "$card is no BlueField (${card_facts[machine]}, no /etc/mlnx-release): name the card with --card USER@HOST"
  fi
  if [[ ${card_facts[uid]} == 0 || ${card_facts[sudo]} == yes ]]; then
    ok "$card may act as root"
  else
    fail "$card may not use sudo without a password: let it, or log in as root with --card"
  fi
  check_mode
  if [[ -n ${card_facts[representors]}${card_facts[host_functions]} ]]; then
    ok "the host's functions on the card: ${card_facts[representors]:-?} (${card_facts[host_functions]:-doca_caps lists none})"
  else
    fail "the card has no representor of a function of the host (devlink port show): without one there is no way to the host agent;" \
      "bring the host's driver up, and see that the card is in DPU mode"
  fi
}

check_mode() {
  local current next
  read -r current next <<<"${card_facts[internal_cpu_offload_engine]:-}"
  case $current in
    'ENABLED(0)') ok 'DPU mode' ;;
    'DISABLED(1)')
      fail "NIC mode: nic-app needs DPU mode. Who uses the card loses the link meanwhile: mlxconfig -d ${card_facts[device]:-DEVICE} set" \
        "INTERNAL_CPU_OFFLOAD_ENGINE=0, then a power cycle of the host"
      ;;
    *) warn "the mode could not be read (mlxconfig -d ${card_facts[device]:-DEVICE} -e q INTERNAL_CPU_OFFLOAD_ENGINE): it has to be ENABLED(0)" ;;
  esac
  if [[ -n $next && $next != "$current" ]]; then warn "after the next power cycle the mode is $next"; fi
  if [[ ${card_facts[internal_cpu_model]:-} == 'SEPARATED_HOST(0)'* ]]; then
    fail "separated mode: the card's Arm cores do not see the host's functions; mlxconfig set INTERNAL_CPU_MODEL=1, then a power cycle"
  fi
}

# DOCA here and on the card: a difference in the first number is an interface of another kind.
check_versions() {
  learn host_facts < <("${BASH_SOURCE[0]%/*}/probe")
  local here=${host_facts[doca]} there=${card_facts[doca]:-}
  if [[ -z $there ]]; then
    fail "no DOCA on the card: its image brings it; on a bare one, apt-get install doca-runtime from the repository of that image"
  elif [[ -z $here ]]; then
    fail "no DOCA on this host, and $there on the card: install doca-runtime $there here, from NVIDIA's DOCA-Host packages"
  elif [[ $here == "$there" ]]; then
    ok "DOCA $here on both sides"
  elif [[ ${here%%.*} == "${there%%.*}" ]]; then
    warn "DOCA $here here and $there on the card: bring the older one up to the other's release before you report a fault"
  else
    fail "DOCA $here here and $there on the card: install $there here, or flash the card with the image of $here (deploy/bluefield/flash)"
  fi
}

# Ends with what was found, and status 1 where something failed.
conclude() {
  say "$failed failed, $warned to look at"
  ((failed == 0))
}
