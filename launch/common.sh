# shellcheck shell=bash
# What tpu_vm.sh and gke_xpk.sh share; sourced, not run. DRY is set where commands are only printed.

die() { # a user's error, as kpod_jax.main has it: exit code 2
  printf 'error: %s\n' "$*" >&2
  exit 2
}

say() { printf '==> %s\n' "$*" >&2; }

# The arguments as one line that bash reads back as the very same words.
quoted() {
  local word line='' single="'" escaped="'\\''"
  for word; do
    if [[ -z $word || $word == *[!A-Za-z0-9_./:=@%+,-]* ]]; then
      if [[ $word == *[[:cntrl:]]* ]]; then
        printf -v word %q "$word"
      else
        word="'${word//$single/$escaped}'" # Easier on the eye than backslashes.
      fi
    fi
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# Runs a command; in a dry run it is printed instead, so that it can be pasted.
run() {
  if [[ -n $DRY ]]; then quoted "$@"; else "$@"; fi
}

need() { # TOOL WHERE-TO-GET-IT
  [[ -n $DRY ]] || command -v "$1" >/dev/null ||
    die "$1 is not installed, or not on PATH. $2"
}

# Text between the line "# Usage" and the first line that is no comment is the script's help.
usage() { sed -n '/^# Usage/,/^[^#]/{/^#/{s/^# \{0,1\}//;p;};}' "$1"; }

value() { # OPTION NUMBER-OF-ARGUMENTS-LEFT
  (($2 > 1)) || die "$1 needs a value."
}

name_ok() { # WHAT VALUE LONGEST
  [[ ${#2} -le $3 && $2 =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    die "$1 $2: expected at most $3 lower-case letters, digits and hyphens, a letter first."
}

number_ok() { # OPTION VALUE
  [[ $2 =~ ^[0-9]+$ ]] || die "$1 $2: expected a whole number."
}

# Checks the flags of kpod_jax.main that decide whether a run survives its machine.
flags_ok() {
  local flag workdir=''
  (($#)) || die "nothing after --: give the flags of kpod_jax.main, such as --config=configs/t5_base.py."
  for flag; do
    case $flag in --workdir=* | -workdir=*) workdir=${flag#*=} ;; esac
  done
  [[ $workdir == gs://?* ]] ||
    die "--workdir=${workdir:-} (after --): expected gs://BUCKET/PATH. The machines' own disks go with them."
}
