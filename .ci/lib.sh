# Functions of .ci/run and .ci/nightly; to be sourced at the root of the repository.

work=$(mktemp -d)
trap 'kill $(jobs -p) 2> /dev/null || true; rm -rf "$work"' EXIT

# Two torch processes of two threads each hinder each other: every process of tests has one.
export OMP_NUM_THREADS=1
# Environments live for minutes here, so nothing is gained by compiling all of them ahead (0 is how pip reads it).
export PIP_NO_COMPILE=0
# uv reads none of pip's settings: where pip is told of a CPU build of torch, uv has to be told, too.
UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$(python3.11 -m pip config get global.find-links 2> /dev/null || true)}}
export UV_FIND_LINKS

cores=$(nproc)

tools() {  # uv, in an environment of its own
  [ -x "$work/tools/bin/uv" ] && return
  python3.11 -m venv "$work/tools"
  "$work/tools/bin/pip" install --quiet uv
}

environment() {  # NAME REQUIREMENT...: make $work/NAME; the plugin is taken from the current folder
  local name=$1 python=$work/$1/bin/python
  shift
  "$work/tools/bin/uv" venv --quiet --python python3.11 "$work/$name"
  "$work/tools/bin/uv" pip install --quiet --python "$python" torch==2.13.0
  "$work/tools/bin/uv" pip install --quiet --python "$python" torch==2.13.0 "$@"
  cpu_only "$python"
}

cpu_only() {  # PYTHON: a CUDA build would bring gigabytes that nothing here can use
  "$1" -c 'import torch; assert torch.version.cuda is None, f"torch {torch.__version__} is a CUDA build"'
}

spread() {  # PYTHON ARGUMENT...: run pytest on all cores, modules whole, for their fixtures are expensive
  local python=$1
  shift
  "$python" -m pytest -q -n "$cores" --dist loadscope "$@"
}

minutes=""
lane() {  # NAME COMMAND...: run a lane, and note how long it took
  local name=$1 started=$SECONDS
  shift
  echo "== $name =="
  "$@"
  minutes+=$(printf '%-12s %5.1f min' "$name" "$(python3 -c "print(($SECONDS - $started) / 60)")")$'\n'
}
