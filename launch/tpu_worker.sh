#!/usr/bin/env bash
# Runs on every worker of a TPU, in the home directory, where tpu_vm.sh copies it and calls it:
#
#   tpu_worker.sh install [URL REF]   code, from kpod-jax.tar.gz or by git, and what it requires
#   tpu_worker.sh start FLAGS         starts kpod_jax.main, which outlives the connection
#   tpu_worker.sh follow [LINES]      its log, from the start or the last so many lines, to its end
#   tpu_worker.sh code                its exit code; or running; or vanished, as after a reboot
#   tpu_worker.sh stop                ends it
set -euo pipefail
cd ~
mkdir -p kpod-jax
cd kpod-jax

running() { [[ -s run.pid ]] && kill -0 "$(<run.pid)" 2>/dev/null; }

case $1 in
  install)
    if running; then
      echo "A command is running on $(hostname) already: follow it (logs) or end it (stop)." >&2
      exit 1
    fi
    rm -rf kpod_jax configs # Files that the new code no longer has.
    if (($# > 1)); then
      git init --quiet
      git fetch --quiet --depth=1 -- "$2" "$3"
      git checkout --quiet --force --detach FETCH_HEAD
    else
      tar -xzf ../kpod-jax.tar.gz
    fi
    if [[ -e ../kpod-jax.env ]]; then chmod 600 ../kpod-jax.env; fi
    # uv brings a Python where the machine's own is older than 3.11.
    export PATH="$HOME/.local/bin:$PATH" PIP_BREAK_SYSTEM_PACKAGES=1
    command -v uv >/dev/null || python3 -m pip install --quiet --user uv
    [[ -x .venv/bin/python ]] || uv venv --quiet --python '>=3.11,<3.14' .venv
    uv pip install --quiet --python .venv/bin/python -r requirements.txt 'jax[tpu]' 'gcsfs>=2025.3,<2027'
    ;;
  start)
    shift
    rm -f run.exit run.pid
    # A session of its own, so that the end of the connection does not reach it.
    # shellcheck disable=SC2016
    nohup setsid bash -c '
      trap : TERM # Sent to the whole session; this shell must live to note the exit code.
      echo $$ >run.pid
      set -a; if [[ -e ../kpod-jax.env ]]; then source ../kpod-jax.env; fi; set +a
      code=0; "$@" || code=$?
      echo "$code" >run.exit' kpod .venv/bin/python -u -m kpod_jax.main "$@" >run.log 2>&1 </dev/null &
    until [[ -s run.pid ]]; do sleep 0.1; done
    ;;
  follow) tail -n "${2:-+1}" --pid="$(<run.pid)" -f run.log ;;
  code)
    if [[ -s run.exit ]]; then cat run.exit; elif running; then echo running; else echo vanished; fi
    ;;
  stop) running && kill -TERM -- "-$(<run.pid)" ;;
esac
