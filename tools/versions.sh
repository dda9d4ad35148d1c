#!/usr/bin/env bash
# The wheel with the oldest and the newest torch that it is for; `make wheel` and `make test-versions`
# call this. tools/versions/*.txt name the releases.
#
#   tools/versions.sh wheel    build sdist and wheels to dist/, check them, compare golden numbers, for
#                              and with every Python that is here
#   tools/versions.sh install [oldest] [newest]
#                              make the environments of `test`
#   tools/versions.sh test [oldest] [newest]
#                              run the layers' tests, both versions at a time
#
# OLDEST_PYTHON, NEWEST_PYTHON: the Pythons of `test`, by release; PYTHON where these are not found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
home=build/versions
tools=$home/tools/bin
python=${PYTHON:-python3}
both=(oldest newest)
declare -A wanted=([oldest]=${OLDEST_PYTHON:-3.10} [newest]=${NEWEST_PYTHON:-3.13})

found() { # RELEASE: an interpreter of it
  local one
  for one in "python$1" "$(pyenv prefix "$1" 2>/dev/null)/bin/python"; do
    "$one" -c 'import sys; print(sys.executable)' 2>/dev/null && return
  done
  return 1
}

pip() { # ENVIRONMENT ...: its pip, without the constraints of a machine, which are not for here
  PIP_CONSTRAINT=${constraints:-/dev/null} "$home/$1/bin/python" -m pip "${@:2}" -q
}

environment() { # NAME PYTHON TORCH ...: made anew, with that torch and what else there is to install
  "$2" -m venv --clear "$home/$1"
  # torch comes without what its CUDA builds ask for
  pip "$1" install --no-deps "$3"
  pip "$1" install "${@:4}" 2> >(grep -v -e 'torch .* requires' -e 'dependency resolver' >&2)
  "$home/$1/bin/python" tools/cpu_torch.py
}

installed() { # NAME: its environment, made anew when its list of releases changes
  local constraints=tools/versions/$1.txt
  cmp -s "$constraints" "$home/$1/.installed" && return
  environment "$1" "$(found "${wanted[$1]}" || echo "$python")" \
    "$(grep '^torch==' "$constraints")" -r <(grep -v '^torch==' "$constraints")
  cp "$constraints" "$home/$1/.installed"
}

install() { # ENVIRONMENT FOLDER: the wheel in the folder that suits it
  pip "$1" install --no-deps --no-index --force-reinstall --find-links "$2" gat-attention
}

live() { # ENVIRONMENT: which versions and kernels are at work there, which must be there
  (cd "$home" && GAT_REQUIRE_KERNELS=1 "$1/bin/python" -m attn_core.info)
}

build() { # sdist and wheels to dist/, checked, for the Pythons that are here
  local release interpreter wheel
  "$python" -m venv --clear "$home/tools"
  pip tools install -r tools/versions/tools.txt
  rm -rf dist "$home/linux"
  "$tools/python" -m build -q --sdist
  for release in 3.10 3.11 3.12; do # 3.12's serves all newer ones
    interpreter=$(found $release) || { echo "No wheel for Python $release, which is not here"; continue; }
    GAT_REQUIRE_KERNELS=1 "$tools/python" -m pip --python "$interpreter" wheel -q --no-deps \
      -w "$home/linux" dist/*.tar.gz
  done
  # Windows goes without the kernels, which its compiler does not know how to compile
  rm -rf "$home/pure"
  pip tools wheel --no-deps -w "$home/pure" -C wheel.cmake=false -C wheel.py-api=py3 dist/*.tar.gz
  "$tools/wheel" tags --remove --platform-tag win_amd64 "$home"/pure/*.whl && mv "$home"/pure/*.whl dist
  # No library goes into the wheel: the threads are those of torch's own OpenMP
  PATH=$PWD/$tools:$PATH "$tools/auditwheel" repair --wheel-dir dist "$home"/linux/*.whl
  for wheel in dist/*.whl; do
    if unzip -l "$wheel" | grep -E '\.libs/|libgomp'; then
      echo "$wheel bundles a library" >&2
      exit 1
    fi
  done
  "$tools/twine" check --strict dist/*
  "$tools/check-wheel-contents" dist/*.whl
  "$tools/abi3audit" --strict --report dist/*abi3*.whl >/dev/null
}

golden() { # RELEASE LIST: the golden numbers in a clean environment of that Python
  local interpreter pins relation='=='
  interpreter=$(found "$1") || return 0
  [[ $2 == newest ]] && relation='<=' # the newest that there is for an old Python
  mapfile -t pins < <(sed -nE "s/^(torch|torch_geometric)==/\1$relation/p" "tools/versions/$2.txt")
  environment golden "$interpreter" "${pins[@]}" \
    numpy filelock fsspec jinja2 networkx setuptools sympy typing_extensions
  install golden dist
  live golden
  (cd "$home" && golden/bin/python ../../tools/golden.py) >"$home/$1-$2.golden"
}

run_tests() { # NAME: the tests of the layers, where only the installed packages can be found
  local name=$1 stage=$home/$1-tests
  rm -rf "$stage" "$home/$name-wheel" && mkdir -p "$stage"
  # A wheel for that Python, kernels included
  GAT_REQUIRE_KERNELS=1 pip "$name" wheel --no-deps -w "$home/$name-wheel" .
  install "$name" "$home/$name-wheel"
  live "$name"
  cp -r tests examples datasets benchmarks docs conftest.py pyproject.toml "$stage"
  cd "$stage"
  OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HYPOTHESIS_PROFILE=ci MPLBACKEND=Agg GAT_REQUIRE_KERNELS=1 \
    TORCHINDUCTOR_CACHE_DIR=$PWD/inductor "../$name/bin/python" -m pytest -q -p no:cacheprovider \
    --show-capture=no -m "not slow" ${PYTEST_ARGS:-} $(grep -v '^#' ../../../tools/versions/tests.txt)
}

case ${1:-} in
  wheel)
    build
    rm -f "$home"/*.golden
    for release in 3.10 3.11 3.12 3.13 3.14; do
      # torch's oldest release here knows no newer Python than 3.13
      [[ $release == 3.14 ]] || golden $release oldest
      golden $release newest
    done
    all=("$home"/*.golden)
    for one in "${all[@]}"; do
      diff "${all[0]}" "$one"
    done
    echo "The same $(wc -l <"$one") golden numbers in ${#all[@]} environments"
    ls -l dist
    ;;
  install)
    shift
    for name in "${@:-${both[@]}}"; do
      installed "$name"
    done
    ;;
  test)
    shift
    names=("${@:-${both[@]}}") running=() status=0
    for name in "${names[@]}"; do
      installed "$name"
    done
    for name in "${names[@]}"; do
      (run_tests "$name") >"$home/$name.log" 2>&1 &
      running+=($!)
    done
    for i in "${!names[@]}"; do
      wait "${running[i]}" || status=1
      echo "--- ${names[i]}"
      cat "$home/${names[i]}.log"
    done
    exit $status
    ;;
  *)
    sed -n '2,13s/^# \?//p' "$0"
    exit 2
    ;;
esac
