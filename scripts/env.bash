# shellcheck shell=bash
# A shell in which `openvla-ros`, `ros2`-style imports (rclpy, openvla_ros.msg) and `colcon` work:
#
#     source scripts/env.bash      (bash or zsh, from any directory, after `make setup`)
#
# Sources of this checkout come before the installed overlay, so an edit is live at once. Fast DDS gets
# config/fastdds_images.xml, unless you set a profile of your own.

if [ -n "${ZSH_VERSION:-}" ]; then
    eval '_ovr_file=${(%):-%x}'  # eval: bash cannot parse this
    _ovr_shell=zsh
else
    _ovr_file=${BASH_SOURCE[0]}
    _ovr_shell=bash
fi
_ovr_root=$(CDPATH='' cd -- "$(dirname -- "$_ovr_file")/.." && pwd -P)
_ovr_venv=$_ovr_root/.venv

_ovr_load() {
    if [ ! -e "$_ovr_venv/openvla_ros.env" ] || [ ! -e "$_ovr_root/install/local_setup.$_ovr_shell" ]; then
        echo "openvla_ros: $_ovr_root is not set up yet. Run: make -C '$_ovr_root' setup" >&2
        return 1
    fi
    # ROS scripts read variables that may be unset and run commands that may fail.
    case $- in *u*) _ovr_restore="set -u" ;; *) _ovr_restore=: ;; esac
    case $- in *e*) _ovr_restore="$_ovr_restore; set -e" ;; esac
    set +eu

    # shellcheck source=/dev/null
    . "$_ovr_venv/openvla_ros.env"  # ROS_SOURCE=wheels, or the setup script of the ROS it was built on
    # colcon's scripts call their Python unquoted, and the path of .venv may hold a space.
    _ovr_colcon_python=${COLCON_PYTHON_EXECUTABLE:-}
    COLCON_PYTHON_EXECUTABLE=${_ovr_colcon_python:-$BASE_PYTHON}
    if [ "$ROS_SOURCE" = wheels ]; then
        # Another ROS in this shell would shadow the wheels: its rclpy belongs to another Python.
        case ":${AMENT_PREFIX_PATH:-}:" in
            *":$_ovr_venv:"*) ;;
            *) unset AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH ;;
        esac
        export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
        PYTHONPATH=$("$_ovr_venv/bin/python" -I -c 'if True:
            import os
            paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            print(os.pathsep.join(p for p in paths if p and not os.path.isdir(p + "/rclpy")))')
        # Exported but empty, it would come to mean the current directory.
        if [ -n "$PYTHONPATH" ]; then export PYTHONPATH; else unset PYTHONPATH; fi
        # shellcheck source=/dev/null
        . "$_ovr_venv/setup.$_ovr_shell"
        # shellcheck source=/dev/null
        . "$_ovr_root/install/local_setup.$_ovr_shell"
    else
        # setup, not local_setup: it also sources the workspaces that were sourced during set-up.
        # shellcheck source=/dev/null
        [ -n "${AMENT_PREFIX_PATH:-}" ] || . "${ROS_SOURCE%.*}.$_ovr_shell"
        # shellcheck source=/dev/null
        . "$_ovr_root/install/setup.$_ovr_shell"
    fi
    [ -n "$_ovr_colcon_python" ] || unset COLCON_PYTHON_EXECUTABLE
    unset ROS_SOURCE ROOT BASE_PYTHON

    export VIRTUAL_ENV=$_ovr_venv
    export COLCON_DEFAULTS_FILE=$_ovr_venv/colcon-defaults.yaml
    _ovr_first PATH "$_ovr_venv/bin"
    _ovr_first PYTHONPATH "$_ovr_root"
    if [ -z "${FASTRTPS_DEFAULT_PROFILES_FILE:-}${FASTDDS_DEFAULT_PROFILES_FILE:-}" ]; then
        # Up to Jazzy Fast DDS reads the first name, from Kilted on the second.
        export FASTRTPS_DEFAULT_PROFILES_FILE=$_ovr_root/config/fastdds_images.xml
        export FASTDDS_DEFAULT_PROFILES_FILE=$FASTRTPS_DEFAULT_PROFILES_FILE
    fi
    eval "$_ovr_restore"
}

_ovr_first() {  # _ovr_first VARIABLE DIRECTORY: DIRECTORY becomes the first entry, and the only such one
    eval "_ovr_list=:\${$1:-}:"
    while case $_ovr_list in *":$2:"*) true ;; *) false ;; esac; do
        _ovr_list=${_ovr_list%%":$2:"*}:${_ovr_list#*":$2:"}
    done
    _ovr_list=${_ovr_list#:}
    _ovr_list=${_ovr_list%:}
    eval "export $1=\"\$2\${_ovr_list:+:\$_ovr_list}\""
}

_ovr_status=0
_ovr_load || _ovr_status=$?
unset _ovr_file _ovr_shell _ovr_root _ovr_venv _ovr_restore _ovr_list _ovr_colcon_python
unset -f _ovr_load _ovr_first
eval "unset _ovr_status; return $_ovr_status"
