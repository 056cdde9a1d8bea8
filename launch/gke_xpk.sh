#!/usr/bin/env bash
# Usage: launch/gke_xpk.sh COMMAND --name NAME --cluster CLUSTER [OPTIONS] [-- FLAGS OF kpod_jax.main]
#
# Trains on TPU slices of a GKE cluster that XPK made (`xpk cluster create`).
#
# Commands
#   run      creates the workload; Kueue starts it when there is room. Slices that are preempted are
#            started again with the same command; a user's error (exit code 2) is not.
#   logs     follows the log of worker 0 of slice 0
#   status   lists the workload
#   delete   deletes the workload; the cluster stays and costs money
#
# Options
#   --name NAME           of the workload
#   --cluster CLUSTER     of GKE
#   --zone ZONE           default: gcloud's
#   --project PROJECT     default: gcloud's
#   --dry-run             print the commands, run nothing
#   --help                this text
# of run
#   --type TYPE           of a slice, such as v5litepod-16
#   --slices N            default 1
#   --image IMAGE         of launch/Dockerfile's target tpu, in a registry that the cluster reads
#   --build               build the image and push it first
#   --max-restarts N      after preemptions; default 100
#   --xpk-flag FLAG       one more flag of `xpk workload create`, such as --priority=high; repeatable
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$ROOT/launch/common.sh"

DRY='' command='' name='' cluster='' zone='' project='' type='' image='' build=''
slices=1 max_restarts=100 xpk_flags=()

while (($#)); do
  case $1 in
    run | logs | status | delete) command=$1 ;;
    --name) value "$1" $#; name=$2; shift ;;
    --cluster) value "$1" $#; cluster=$2; shift ;;
    --zone) value "$1" $#; zone=$2; shift ;;
    --project) value "$1" $#; project=$2; shift ;;
    --type) value "$1" $#; type=$2; shift ;;
    --slices) value "$1" $#; slices=$2; shift ;;
    --image) value "$1" $#; image=$2; shift ;;
    --build) build=1 ;;
    --max-restarts) value "$1" $#; max_restarts=$2; shift ;;
    --xpk-flag) value "$1" $#; xpk_flags+=("$2"); shift ;;
    --dry-run) DRY=1 ;;
    --help | -h) usage "${BASH_SOURCE[0]}"; exit 0 ;;
    --) shift; break ;;
    *) die "$1: unknown; see --help. Flags of kpod_jax.main follow after --." ;;
  esac
  shift
done
[[ -n $command ]] || die "no command: run, logs, status or delete; see --help."
[[ -n $name ]] || die "--name is missing."
[[ -n $cluster ]] || die "--cluster is missing."
name_ok --name "$name" 40
name_ok --cluster "$cluster" 40
where=(--cluster="$cluster")
[[ -z $zone ]] || where+=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")

if [[ $command == logs ]]; then
  need kubectl "See https://kubernetes.io/docs/tasks/tools/."
  labels=jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0
  run kubectl logs --follow --tail=-1 \
    --selector="$labels,batch.kubernetes.io/job-completion-index=0"
  exit
fi
need xpk "pip install xpk."
case $command in
  status) run xpk workload list "${where[@]}" --filter-by-job="^$name\$"; exit ;;
  delete) run xpk workload delete "${where[@]}" --workload="$name" --force; exit ;;
esac

[[ -n $type ]] || die "--type is missing, such as v5litepod-16."
[[ -n $image ]] || die "--image is missing, such as us-docker.pkg.dev/PROJECT/REPOSITORY/kpod-jax:1."
[[ $type == *-* ]] || die "--type $type: expected a slice, such as v5litepod-16."
number_ok --slices "$slices"
number_ok --max-restarts "$max_restarts"
flags_ok "$@"

if [[ -n $build ]]; then
  need docker "See https://docs.docker.com/engine/install/."
  run docker build --platform=linux/amd64 --file="$ROOT/launch/Dockerfile" --target=tpu \
    --tag="$image" "$ROOT"
  run docker push "$image"
fi

# XPK pastes the command into a script in a pod's YAML. bash reads it there, but before that Kubernetes
# takes $$ for $ and replaces $(NAME): no $ may stand before another one or a parenthesis.
kubernetes_quoted() {
  local word line='' LC_ALL=C # Only ASCII, whose line breaks YAML and bash agree on.
  for word; do
    printf -v word %q "$word"
    if [[ $word == "\$'"* ]]; then # Words with line breaks and the like, the only ones with a bare $.
      word=${word:2}
      word="\$'${word//\$/\\044}"
    fi
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

run xpk workload create "${where[@]}" --workload="$name" --tpu-type="$type" \
  --num-slices="$slices" --docker-image="$image" --max-restarts="$max_restarts" \
  ${xpk_flags[@]+"${xpk_flags[@]}"} \
  --command="$(kubernetes_quoted python -u -m kpod_jax.main "$@")"
[[ -z $DRY ]] || exit 0
say "$name runs on $cluster or waits for it. The cluster's nodes cost money until they are deleted."
say "  follow it:  launch/gke_xpk.sh logs --name $name --cluster $cluster"
say "  delete it:  $(quoted xpk workload delete "${where[@]}" --workload="$name" --force)"
