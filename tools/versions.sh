#!/usr/bin/env bash
# The wheel with the oldest and the newest torch that it is for; `make wheel` and `make test-versions`
# call this. tools/versions/*.txt name the releases.
#
#   tools/versions.sh wheel    build sdist and wheels to dist/, check them, compare golden numbers
#   tools/versions.sh test     run the layers' tests, both versions at a time
#
# OLDEST_PYTHON, NEWEST_PYTHON: the Pythons to take, by release; PYTHON where these are not found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
home=build/versions
declare -A wanted=([oldest]=${OLDEST_PYTHON:-3.10} [newest]=${NEWEST_PYTHON:-3.13})

python_for() { # RELEASE: an interpreter of it, or PYTHON
  local one
  for one in "python$1" "$(pyenv prefix "$1" 2>/dev/null)/bin/python" "${PYTHON:-python3}"; do
    "$one" -c '' 2>/dev/null && echo "$one" && return
  done
}

installed() { # NAME: its environment, made anew when its list of releases changes
  local environment=$home/$1 list=tools/versions/$1.txt
  cmp -s "$list" "$environment/.installed" && return
  "$(python_for "${wanted[$1]}")" -m venv --clear "$environment"
  # torch comes without what its CUDA builds ask for; the constraints of a machine are not for here
  local pip=(env PIP_CONSTRAINT="$list" "$environment/bin/python" -m pip install -q)
  "${pip[@]}" --no-deps "$(grep '^torch==' "$list")"
  "${pip[@]}" -r <(grep -v '^torch==' "$list") 2> >(grep -v 'torch .* requires' >&2)
  "$environment/bin/python" tools/cpu_torch.py
  cp "$list" "$environment/.installed"
}

build() { # NAME FOLDER: a wheel for that environment's Python, kernels included, from an sdist
  GAT_REQUIRE_KERNELS=1 "$home/$1/bin/python" -m pip wheel -q --no-deps -w "$2" "$sdist"
}

install() { # NAME FOLDER: the wheel in the folder that suits that environment
  "$home/$1/bin/python" -m pip install -q --no-deps --no-index --force-reinstall \
    --find-links "$2" gat-attention
}

live() { # NAME: which versions and kernels are at work there, which must be there
  (cd "$home" && GAT_REQUIRE_KERNELS=1 "$1/bin/python" -m attn_core.info)
}

make_sdist() {
  python3 -m venv --clear "$home/tools"
  "$home/tools/bin/python" -m pip install -q -r tools/versions/tools.txt
  rm -rf dist
  "$home/tools/bin/python" -m build -q --sdist
  sdist=$(echo dist/*.tar.gz)
}

run_tests() { # NAME: the tests of the layers, where only the installed packages can be found
  local name=$1 stage=$home/$1-tests
  rm -rf "$stage" && mkdir -p "$stage"
  cp -r tests examples datasets benchmarks docs conftest.py pyproject.toml "$stage"
  cd "$stage"
  OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HYPOTHESIS_PROFILE=ci MPLBACKEND=Agg GAT_REQUIRE_KERNELS=1 \
    TORCHINDUCTOR_CACHE_DIR=$PWD/inductor "../$name/bin/python" -m pytest -q -p no:cacheprovider \
    --show-capture=no -m "not slow" ${PYTEST_ARGS:-} $(grep -v '^#' ../../../tools/versions/tests.txt)
}

case ${1:-} in
  wheel)
    make_sdist
    bin=$home/tools/bin
    for name in oldest newest; do
      installed $name
      build $name "$home/linux"
    done
    # No library goes into the wheel: the threads are those of torch's own OpenMP
    PATH=$PWD/$bin:$PATH "$bin/auditwheel" repair --wheel-dir dist "$home"/linux/*.whl
    for wheel in dist/*.whl; do
      if unzip -l "$wheel" | grep -E '\.libs/|libgomp'; then
        echo "$wheel bundles a library" >&2
        exit 1
      fi
    done
    "$bin/twine" check --strict dist/*
    "$bin/check-wheel-contents" dist/*.whl
    "$bin/abi3audit" --strict --report dist/*abi3*.whl >/dev/null
    for name in oldest newest; do
      install $name dist
      live $name
      (cd "$home" && "$name/bin/python" ../../tools/golden.py) >"$home/$name.golden"
    done
    diff "$home/oldest.golden" "$home/newest.golden"
    echo "The same $(wc -l <"$home/newest.golden") golden numbers with both"
    ls -l dist
    ;;
  test)
    for name in oldest newest; do
      installed $name
      sdist=.
      rm -rf "$home/$name-wheel"
      build $name "$home/$name-wheel"
      install $name "$home/$name-wheel"
      live $name
    done
    status=0
    run_tests oldest >"$home/oldest.log" 2>&1 &
    other=$!
    (run_tests newest) || status=1
    wait $other || status=1
    cat "$home/oldest.log"
    exit $status
    ;;
  *)
    sed -n '2,8s/^# \?//p' "$0"
    exit 2
    ;;
esac
