#!/usr/bin/env bash
# All set-up of this checkout, from nothing to a built overlay: `make setup` runs it.
#
# 1. System tools: Python 3.10 - 3.13 with venv and headers, cmake, g++, make. What is absent is
#    installed with apt-get when that needs no password, and otherwise named in a message.
# 2. A virtual environment in .venv.
# 3. torch, before anything that depends on it, so that nothing else can choose one.
# 4. Pinned packages: setup.py's extras at constraints.txt's versions, and ROS 2 from wheels. A ROS
#    that is already sourced, and whose rclpy the Python can import, is used instead of the wheels.
# 5. Messages: colcon builds the overlay in install/, linked to the sources of this checkout.
#
# Run again at any time: it does only what changed, and finishes what an interruption left. Log:
# .venv/setup.log
#
# Variables
#   PYTHON      interpreter to use. Default: python3, or the newest suitable python3.x on PATH.
#   TORCH_SPEC  what to give pip for torch, e.g. 'torch==2.13.0'; `skip` for none (the mock policy and
#               all of ROS then still work). Default: the torch that is installed; else, with an NVIDIA
#               GPU, the tested version; else that version's CPU build, first from wherever pip is
#               configured to look, then through uv, which knows PyTorch's own index. It stops rather
#               than fetch gigabytes of CUDA for a machine without GPU, unless
#   OPENVLA_ALLOW_CUDA_TORCH=1 is set.
set -euo pipefail

TESTED_TORCH=2.13.0
STEPS=5

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python
log=$venv/setup.log
cd "$root"
unset MAKEFLAGS MFLAGS MAKELEVEL CDPATH # or `make` hands its job server to the one that colcon starts
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 # or each python start runs twice once the wheels are there

step=0
say() { printf '[%d/%d] %s\n' "$step" "$STEPS" "$*"; }
next() { step=$((step + 1)) && say "$*"; }
die() {
    printf '\nopenvla_ros set-up stopped in step %d of %d.\n' "$step" "$STEPS" >&2
    printf '%s\n' "$@" >&2
    exit 1
}

# ---- 1. system tools ---------------------------------------------------------------------------------

# What PYTHON starts from: the interpreter behind a pyenv shim, a virtual environment or a symlink. Without
# the last, /usr/bin/python3 and the /usr/bin/python3.11 that its environment names would look like two.
base_python() { "$1" -c 'import os, sys; print(os.path.realpath(sys._base_executable))' 2>/dev/null; }
is_suitable() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; }
imports() { "$1" -c "import $2" >/dev/null 2>&1; }

# Sets ros_source: `wheels`, or the setup script of the ROS that is sourced; and base, the interpreter.
choose_ros_and_python() {
    local candidate ROS_SOURCE=wheels BASE_PYTHON='' ROOT
    ros_source=wheels base=
    # shellcheck source=/dev/null
    if [ -r "$venv/openvla_ros.env" ]; then . "$venv/openvla_ros.env"; fi
    if [ "$ROS_SOURCE" != wheels ] && [ -r "$ROS_SOURCE" ] && [ -z "${AMENT_PREFIX_PATH:-}" ]; then
        set +eu
        # shellcheck source=/dev/null
        . "$ROS_SOURCE"
        set -eu
    fi
    if [ -n "${ROS_DISTRO:-}" ] && [[ ":${AMENT_PREFIX_PATH:-}:" != *":$venv:"* ]]; then
        for candidate in ${PYTHON:-$BASE_PYTHON /usr/bin/python3 python3}; do
            candidate=$(base_python "$candidate") || continue
            if is_suitable "$candidate" && imports "$candidate" rclpy; then
                base=$candidate ros_source=$(sourced_setup_script)
                return
            fi
        done
        say "ROS ${ROS_DISTRO} is sourced, but ${PYTHON:-python3} cannot import its rclpy: using ROS wheels."
    fi
    # From here on only the wheels count.
    unset AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH PYTHONPATH COLCON_DEFAULTS_FILE
    if [ -z "${PYTHON:-}" ] && is_suitable "$python"; then
        base=$(base_python "$python")
        return
    fi
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if is_suitable "$candidate"; then base=$(base_python "$candidate"); return; fi
    done
}

sourced_setup_script() {
    local prefix
    while read -r -d : prefix; do
        if [ -e "$prefix/share/ament_index/resource_index/packages/rclpy" ] && [ -r "$prefix/setup.bash" ]; then
            echo "$prefix/setup.bash"
            return
        fi
    done <<<"$AMENT_PREFIX_PATH:"
    echo "/opt/ros/$ROS_DISTRO/setup.bash"
}

check_system() {
    local packages=() version
    command -v cmake >/dev/null || packages+=(cmake)
    command -v c++ >/dev/null || packages+=(g++)
    command -v make >/dev/null || packages+=(make)
    if [ -z "$base" ]; then
        if [ -n "${PYTHON:-}" ] || command -v python3 >/dev/null; then
            die "It needs Python 3.10 to 3.13; ${PYTHON:-python3} is $(${PYTHON:-python3} -V 2>&1)." \
                "Install one of those and name it: PYTHON=python3.12 make setup"
        fi
        packages+=(python3 python3-venv python3-dev)
    else
        version=$("$base" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
        imports "$base" "venv, ensurepip" || packages+=("$version-venv")
        "$base" -c 'import os, sysconfig as s; open(os.path.join(s.get_path("include"), "Python.h"))' \
            2>/dev/null || packages+=("$version-dev")
    fi
    ((${#packages[@]} == 0)) || install_system_packages "${packages[@]}"
    [ -n "$base" ] || choose_ros_and_python
    [ -n "$base" ] || die "python3 is still not there, or is not 3.10 to 3.13: $(python3 -V 2>&1)."
}

install_system_packages() {
    command -v apt-get >/dev/null || die "These are absent: $*. (Names as on Debian; apt-get is not here.)"
    if ! as_root true 2>/dev/null; then
        die "These system packages are absent: $*. Install them and run it again:" \
            "    sudo apt-get update && sudo apt-get install -y --no-install-recommends $*"
    fi
    say "installing system packages: $*"
    apt_install "$@" || die "apt-get could not install: $*"
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

apt_install() {
    as_root apt-get update -qq || say "apt-get update failed; trying with the lists that are here"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# ---- 2. the virtual environment ------------------------------------------------------------------------

# Says why .venv cannot be used as it is; silent when it can.
venv_fault() {
    [ -e "$venv" ] || { echo "there is none" && return; }
    # pip writes RECORD last: without it, making the environment was interrupted.
    if ! imports "$python" pip || ! compgen -G "$venv/lib/python3*/site-packages/pip-*/RECORD" >/dev/null; then
        echo "it is incomplete" && return
    fi
    if [ -r "$venv/openvla_ros.env" ]; then
        local ROS_SOURCE ROOT BASE_PYTHON
        # shellcheck source=/dev/null
        . "$venv/openvla_ros.env"
        [ "$ROOT" = "$root" ] || { echo "it was made in $ROOT" && return; }
        [ "$ROS_SOURCE" = "$ros_source" ] || { echo "it was made for ROS from $ROS_SOURCE" && return; }
        [ "$BASE_PYTHON" = "$base" ] || { echo "it was made with $BASE_PYTHON" && return; }
    elif [ "$ros_source" != wheels ] && ! grep -q 'packages = true' "$venv/pyvenv.cfg"; then
        echo "it hides the packages of the sourced ROS"
    fi
}

make_venv() {
    local fault
    fault=$(venv_fault)
    if [ -n "$fault" ]; then
        say "new environment in .venv ($fault); ROS: $ros_source"
        rm -rf "$venv" build install log
        if [ "$ros_source" = wheels ]; then
            "$base" -m venv "$venv"
        else
            "$base" -m venv --system-site-packages "$venv"
        fi
    fi
    printf "ROS_SOURCE='%s'\nROOT='%s'\nBASE_PYTHON='%s'\n" "$ros_source" "$root" "$base" >"$venv/openvla_ros.env"
    printf 'build:\n  cmake-args: ["-DPython3_EXECUTABLE=%s", "-DPYTHON_EXECUTABLE=%s", "-DPython3_FIND_VIRTUALENV=ONLY"]\n' \
        "$python" "$python" >"$venv/colcon-defaults.yaml"
}

# pip, with one line per large download on the screen and everything in the log.
pip_install() {
    local status
    set +e
    "$python" -m pip --disable-pip-version-check install --no-input --progress-bar off "$@" 2>&1 |
        tee -a "$log" |
        sed -nuE -e 's/^ *Downloading ([^-]+-[^-]+)-.*\(([0-9.]+ [MG]B)\)$/      \1 (\2)/p' \
            -e 's/^ *Installing collected packages: .*/      installing/p'
    status=${PIPESTATUS[0]}
    set -e
    return "$status"
}

# ---- 3. torch --------------------------------------------------------------------------------------------

has_gpu() { [ -e /dev/nvidia0 ] || nvidia-smi -L >/dev/null 2>&1; }
torch_version() { "$python" -c 'from importlib.metadata import version as v; print(v("torch"))' 2>/dev/null; }

install_torch() {
    local spec=${TORCH_SPEC:-} have
    have=$(torch_version) || have=
    if [ "$spec" = skip ] || { [ -z "$spec" ] && [ -n "$have" ]; }; then
        say "torch: ${have:-none, as TORCH_SPEC=skip asks}"
    elif [ -n "$spec" ]; then
        say "torch: $spec, from TORCH_SPEC"
        # shellcheck disable=SC2086 # several requirements may be given
        pip_install -c "$venv/constraints.txt" $spec || die "pip cannot install '$spec'; see $log"
    elif has_gpu || [ "${OPENVLA_ALLOW_CUDA_TORCH:-}" = 1 ]; then
        say "torch: torch==$TESTED_TORCH with CUDA, several GB. For another CUDA version: stop (Ctrl-C), see" \
            "PyTorch's installation page, and set TORCH_SPEC."
        pip_install -c "$venv/constraints.txt" "torch==$TESTED_TORCH" || die "pip cannot install torch; see $log"
    else
        install_cpu_torch
    fi
    have=$(torch_version) || have=
    # From here on pip may neither replace this torch nor bring another.
    echo "torch${have:+==}${have:-<0}" >>"$venv/constraints.txt"
}

install_cpu_torch() {
    say "torch: torch==$TESTED_TORCH for CPU (there is no NVIDIA GPU)"
    pip_install -c "$venv/constraints.txt" "torch==$TESTED_TORCH+cpu" && return
    say "pip is not configured to find a CPU build; asking uv, which knows PyTorch's index"
    pip_install -c "$venv/constraints.txt" uv &&
        "$venv/bin/uv" --no-progress pip install --python "$python" -c "$venv/constraints.txt" \
            --torch-backend=cpu "torch==$TESTED_TORCH" 2>&1 | tee -a "$log" && return
    die "No CPU build of torch $TESTED_TORCH is in reach, and the default one for Linux brings several GB of CUDA." \
        "Choose one:" \
        "  * follow PyTorch's installation page (Linux, pip, CPU): set PIP_EXTRA_INDEX_URL to the address it" \
        "    shows, then: make setup" \
        "  * TORCH_SPEC=/path/to/torch-2.13.0+cpu-....whl make setup" \
        "  * OPENVLA_ALLOW_CUDA_TORCH=1 make setup     (large, works without a GPU)" \
        "  * TORCH_SPEC=skip make setup                (mock policy only)" \
        "If that is not the cause, the end of $log says more:" "$(tail -n 6 "$log")"
}

# ---- 4. packages -----------------------------------------------------------------------------------------

# .venv/constraints.txt: constraints.txt, with older NumPy and OpenCV where a sourced ROS needs NumPy 1.
write_constraints() {
    cp constraints.txt "$venv/constraints.txt"
    [ "$ros_source" != wheels ] || return 0
    if "$base" -c 'import numpy, sys; sys.exit(numpy.__version__ >= "2")' 2>/dev/null; then
        grep -vE '^(numpy|opencv-python-headless)==' constraints.txt >"$venv/constraints.txt"
        cat scripts/apt_ros_constraints.txt >>"$venv/constraints.txt"
    fi
}

# A package whose installation was cut short has no RECORD, yet pip takes it for installed; one that was
# being replaced left its old files under ~names.
drop_unfinished_packages() {
    local dist_info
    rm -rf "$venv"/lib/python3*/site-packages/~*
    for dist_info in "$venv"/lib/python3*/site-packages/*.dist-info; do
        [ ! -d "$dist_info" ] || [ -e "$dist_info/RECORD" ] || rm -rf "$dist_info"
    done
}

install_packages() {
    local extras=bags,lerobot,plots,ray,sim,test requirements=()
    [ -z "$(torch_version)" ] || extras=model,quant,train,$extras
    if [ "$ros_source" = wheels ]; then
        requirements=(-r scripts/ros_wheels.txt)
    elif ! command -v colcon >/dev/null; then
        requirements=(colcon-common-extensions)
    fi
    pip_install -c "$venv/constraints.txt" setuptools wheel &&
        pip_install -c "$venv/constraints.txt" --no-build-isolation "${requirements[@]}" -e ".[$extras]" ||
        die "pip could not install the packages. The end of $log:" "$(tail -n 15 "$log")"
    # A comfort, and no reason to stop: it is built from Rust where there is no wheel.
    pip_install -c "$venv/constraints.txt" --only-binary foxglove-sdk -e ".[foxglove]" --no-build-isolation ||
        say "no wheel of foxglove-sdk for this machine: 'openvla-ros monitor --foxglove' will not work"
    # Only its meshes are read; what it would bring (dm_control, gymnasium, ffmpeg) is not needed.
    pip_install -c "$venv/constraints.txt" --no-deps gym-aloha || die "pip cannot install gym-aloha; see $log"
    [ "$ros_source" != wheels ] || "$python" scripts/fix_ros_wheels.py
    provide_rendering
}

# The simulated cell draws without a display, by OSMesa or EGL. All the rest works without either.
provide_rendering() {
    "$python" -c 'from openvla_ros.sim.rendering import open_context; open_context()' >/dev/null 2>&1 && return
    if command -v apt-get >/dev/null && as_root true 2>/dev/null; then
        say "installing system packages: libosmesa6"
        apt_install libosmesa6 && return
    fi
    say "no OpenGL without a display: for the simulated cell install libosmesa6 (sudo apt-get install libosmesa6)"
}

# ---- 5. messages -----------------------------------------------------------------------------------------

build_overlay() {
    local layout=()
    # A layout the user chose stays; colcon refuses to mix them.
    [ "$(cat install/.colcon_install_layout 2>/dev/null)" != merged ] || layout=(--merge-install)
    # Nor can it link where a build without --symlink-install has put a folder.
    local generated=build/openvla_ros/ament_cmake_python/openvla_ros/openvla_ros
    if [ -d $generated ] && [ ! -L $generated ]; then rm -rf build/openvla_ros; fi
    (
        set +eu
        # shellcheck source=/dev/null
        [ "$ros_source" != wheels ] || . "$venv/setup.bash"
        export PATH=$venv/bin:$PATH VIRTUAL_ENV=$venv COLCON_DEFAULTS_FILE=$venv/colcon-defaults.yaml
        colcon build --symlink-install "${layout[@]}" --packages-select openvla_ros \
            --event-handlers console_cohesion- 2>&1 | tee -a "$log"
        exit "${PIPESTATUS[0]}"
    ) || die "colcon could not build the messages. The whole output is in $log"
}

# ---- what has changed? -----------------------------------------------------------------------------------

packages_key() {
    {
        printf '%s\n' "$root" "$ros_source" "${TORCH_SPEC:-}" "$("$python" -VV)"
        cat setup.py pyproject.toml constraints.txt scripts/{setup.bash,*.txt,fix_ros_wheels.py}
    } | sha256sum
}

# Contents decide the messages; names are enough for the rest, which is linked, not copied.
overlay_key() {
    {
        printf '%s\n' "$root" "$ros_source" "$("$python" -VV)"
        cat package.xml CMakeLists.txt scripts/ros_wheels.txt
        find . -maxdepth 2 -name '*.msg' -o -maxdepth 2 -name '*.srv' -o -maxdepth 2 -name '*.action' |
            sort | xargs sha256sum
        find launch config scripts openvla_ros -type f ! -path '*__pycache__*' 2>/dev/null | sort || true
    } | sha256sum
}

is_current() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }

main() {
    local started=$SECONDS fault
    # Two set-ups of one checkout wait for each other.
    if command -v flock >/dev/null; then exec 9<scripts/setup.bash && flock 9; fi

    choose_ros_and_python
    if [ -n "$base" ]; then fault=$(venv_fault); else fault="no Python"; fi
    if [ -z "$fault" ] && is_current "$venv/packages.stamp" "$(packages_key)" &&
        is_current install/overlay.stamp "$(overlay_key)"; then
        echo "openvla_ros is set up; nothing has changed."
        return
    fi

    next "system tools"
    check_system
    next "Python environment"
    make_venv
    if is_current "$venv/packages.stamp" "$(packages_key)"; then
        step=4 && say "torch and packages are up to date"
    else
        rm -f "$venv/packages.stamp"
        drop_unfinished_packages
        write_constraints
        next "torch"
        install_torch
        next "packages (a few minutes the first time)"
        install_packages
        packages_key >"$venv/packages.stamp"
    fi
    step=4 && next "messages and overlay"
    rm -f install/overlay.stamp
    build_overlay
    overlay_key >install/overlay.stamp
    echo "openvla_ros is set up, in $((SECONDS - started)) s. A shell with everything: source scripts/env.bash"
}

main "$@"
