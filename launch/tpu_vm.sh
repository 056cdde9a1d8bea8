#!/usr/bin/env bash
# Usage: launch/tpu_vm.sh COMMAND --name NAME --zone ZONE [OPTIONS] [-- FLAGS OF kpod_jax.main]
#
# Trains on a Cloud TPU VM or a pod slice, which is asked for as a queued resource.
#
# Commands
#   run      asks for the TPU, waits, installs, starts the command on all workers, shows worker 0's
#            log; after a preemption deletes, asks again and starts the same command. Deletes the TPU
#            when the command has succeeded.
#   logs     shows worker 0's log and follows it
#   status   tells the state of the queued resource
#   stop     ends the command on all workers; the TPU stays and costs money
#   delete   deletes the TPU
#
# Options
#   --name NAME           of the queued resource and of its node
#   --zone ZONE           such as us-west4-a
#   --project PROJECT     default: gcloud's
#   --dry-run             print the commands, run nothing
#   --help                this text
# of run
#   --type TYPE           accelerator, such as v5litepod-16 or v6e-8
#   --runtime VERSION     TPU software; default: the one for JAX on that type
#   --spot | --on-demand  default --on-demand
#   --repo URL            git clone this instead of copying the repository's tracked files
#   --ref REF             its branch, tag or commit; default HEAD
#   --env-file FILE       lines NAME=VALUE for the command's environment, such as HF_TOKEN
#   --create-flag FLAG    one more flag of `queued-resources create`; can be repeated
#   --max-restarts N      give up after N preemptions; default 100
#   --poll SECONDS        between looks at the state; default 30
#   --keep                do not delete the TPU after success
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$ROOT/launch/common.sh"

DRY='' pretend=NONE command='' name='' zone='' project='' type='' runtime='' tier='' repo='' ref=HEAD
env_file='' keep='' max_restarts=100 poll=30 create_flags=()

while (($#)); do
  case $1 in
    run | logs | status | stop | delete) command=$1 ;;
    --name) value "$1" $#; name=$2; shift ;;
    --zone) value "$1" $#; zone=$2; shift ;;
    --project) value "$1" $#; project=$2; shift ;;
    --type) value "$1" $#; type=$2; shift ;;
    --runtime) value "$1" $#; runtime=$2; shift ;;
    --spot) tier=--spot ;;
    --on-demand) tier='' ;;
    --repo) value "$1" $#; repo=$2; shift ;;
    --ref) value "$1" $#; ref=$2; shift ;;
    --env-file) value "$1" $#; env_file=$2; shift ;;
    --create-flag) value "$1" $#; create_flags+=("$2"); shift ;;
    --max-restarts) value "$1" $#; max_restarts=$2; shift ;;
    --poll) value "$1" $#; poll=$2; shift ;;
    --keep) keep=1 ;;
    --dry-run) DRY=1 ;;
    --help | -h) usage "${BASH_SOURCE[0]}"; exit 0 ;;
    --) shift; break ;;
    *) die "$1: unknown; see --help. Flags of kpod_jax.main follow after --." ;;
  esac
  shift
done
[[ -n $command ]] || die "no command: run, logs, status, stop or delete; see --help."
[[ -n $name ]] || die "--name is missing."
[[ -n $zone ]] || die "--zone is missing, such as us-west4-a."
name_ok --name "$name" 61
name_ok --zone "$zone" 61
need gcloud "See https://cloud.google.com/sdk/docs/install."
where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")
delete=(gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet)

on() { # WORKERS COMMAND, which the workers' shell reads
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" \
    --ssh-flag='-o ServerAliveInterval=30' --command="$2"
}
worker() { quoted bash tpu_worker.sh "$@"; } # As the workers' shell reads it.

case $command in
  logs) on 0 "$(worker follow)"; exit ;;
  status) run gcloud compute tpus queued-resources describe "$name" "${where[@]}"; exit ;;
  stop) on all "$(worker stop)"; exit ;;
  delete) run "${delete[@]}"; exit ;;
esac

if [[ -z $runtime ]]; then # https://cloud.google.com/tpu/docs/runtimes
  case $type in
    '') die "--type is missing, such as v5litepod-16." ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    *) die "--type $type: give its TPU software with --runtime." ;;
  esac
fi
number_ok --max-restarts "$max_restarts"
number_ok --poll "$poll"
[[ $repo != *://*:*@* ]] || die "--repo holds a password. Use a public URL, or leave --repo out."
[[ -z $env_file || -r $env_file ]] || die "--env-file $env_file cannot be read."
flags_ok "$@"

made='' scratch=${TMPDIR:-/tmp} # Of a dry run, for commands that can be pasted.
# shellcheck disable=SC2329 # The trap calls it.
left() {
  say "$name ($type, $zone) IS LEFT: it costs money until it is deleted, and a command may run on it."
  say "  follow it:  launch/tpu_vm.sh logs --name $name --zone $zone${project:+ --project $project}"
  say "  delete it:  $(quoted "${delete[@]}")"
}
if [[ -z $DRY ]]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"; [[ -z $made ]] || left' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
fi

# Sets `state`: what gcloud says, NONE where there is no such resource, UNKNOWN where nobody can say.
look() {
  local ask=(gcloud compute tpus queued-resources describe "$name" "${where[@]}")
  ask+=(--format='value(state.state)')
  if [[ -n $DRY ]]; then
    quoted "${ask[@]}"
    state=$pretend
  elif ! state=$("${ask[@]}" 2>"$scratch/errors"); then
    state=UNKNOWN
    if grep -q NOT_FOUND "$scratch/errors"; then state=NONE; else cat "$scratch/errors" >&2; fi
  fi
}

# Asks for the TPU unless it is there, and waits. Fails where it was preempted or could not be had.
up() {
  local said=''
  look
  made=1
  if [[ $state == NONE ]]; then
    if ! run gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" \
      --accelerator-type="$type" --runtime-version="$runtime" ${tier:+"$tier"} \
      ${create_flags[@]+"${create_flags[@]}"}; then
      look
      [[ $state != NONE ]] || made=''
      exit 1
    fi
    pretend=ACTIVE
    look
  fi
  while [[ $state != ACTIVE ]]; do
    if lost; then return 1; fi
    [[ $state == "$said" ]] || say "$name: $state"
    said=$state
    sleep "$poll"
    look
  done
}
lost() { [[ $state =~ ^(NONE|FAILED|PREEMPTED|SUSPENDING|SUSPENDED|DELETING)$ ]]; }

# shellcheck disable=SC2016 # A commit of what git tracks, with changes that are not committed yet.
PACK='cd "$1" && code=$(git stash create) && git archive --format=tar.gz --output="$2" "${code:-HEAD}"'
put() {
  local files=("$ROOT/launch/tpu_worker.sh") origin=()
  if [[ -n $repo ]]; then
    origin=("$repo" "$ref")
  else
    files+=("$scratch/kpod-jax.tar.gz")
    run bash -c "$PACK" pack "$ROOT" "${files[1]}" || exit 1
  fi
  if [[ -n $env_file ]]; then
    files+=("$scratch/kpod-jax.env")
    run install -m 600 "$env_file" "$scratch/kpod-jax.env" || exit 1
  fi
  run gcloud compute tpus tpu-vm scp "${files[@]}" "$name:" "${where[@]}" --worker=all &&
    on all "$(worker install ${origin[@]+"${origin[@]}"})"
}

# Shows the log until the command has ended and sets `code`. Fails where the machine is lost.
watch() {
  local lines=+1 answer
  while :; do
    on 0 "$(worker follow "$lines")" || true
    lines=20
    if [[ -n $DRY ]]; then
      on 0 "$(worker code)"
      code=0
      return
    fi
    answer=$(on 0 "$(worker code)") || answer=''
    case $answer in
      [0-9]*) code=$answer; return ;;
      vanished) state=VANISHED; return 1 ;;
      '') look; if lost; then return 1; fi ;;
    esac
    sleep "$poll" # The connection broke; the command goes on.
  done
}

remove() { # What is being suspended can be deleted only later.
  local tries
  for ((tries = 0; tries < 20; tries++)); do
    if run "${delete[@]}"; then made=''; return; fi
    sleep "$poll"
  done
  return 1
}

restarts=0
until up && { { put && on all "$(worker start "$@")"; } || { look; false; }; } && watch; do
  if ! lost && [[ $state != VANISHED ]]; then
    say "The command could not be installed or started; $name is $state. See above."
    exit 1
  fi
  ((++restarts <= max_restarts)) || { say "Given up after $max_restarts restarts."; exit 1; }
  say "$name is $state. Starting the same command again ($restarts of at most $max_restarts)."
  if lost && [[ $state != NONE ]]; then remove || exit 1; fi
  sleep "$poll"
done
[[ -n $DRY ]] || say "The command ended with exit code $code."
if [[ $code == 0 && -z $keep ]]; then remove || exit 1; fi
exit "$code"
