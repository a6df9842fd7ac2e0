#!/usr/bin/env bash
# Makes a keystore with one enclave per part of openvla_ros, and the permissions of the policy:
#
#     sros2/make_keystore.bash KEYSTORE [POLICY]      (default: openvla.policy.xml beside this file)
#
# Needs `ros2 security` (package sros2). Permissions hold for one ROS_DOMAIN_ID: the one of this shell.
# Run it again after a change of the policy: keys stay, permissions are written anew. KEYSTORE/private
# holds the authority's keys: keep it off the robot. Whoever has an enclave's folder is that enclave.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
keystore=${1:?usage: make_keystore.bash KEYSTORE [POLICY]}
policy=${2:-$here/openvla.policy.xml}

if ! ros2 security --help >/dev/null 2>&1; then
    echo "make_keystore: 'ros2 security' does not run here. Source ROS and install its package sros2." >&2
    exit 1
fi
if [ ! -f "$policy" ]; then
    echo "make_keystore: there is no policy $policy." >&2
    exit 1
fi

umask 077  # the keys are readable by you alone
ros2 security generate_artifacts -k "$keystore" -p "$policy"

# An enclave is made with the right to everything and then narrowed. Say so if that has not happened.
wide=$(grep -rlE '<topic>rt/\*</topic>' --include=permissions.xml "$keystore/enclaves" || true)
if [ -n "$wide" ]; then
    echo "make_keystore: these permissions still allow everything: $wide" >&2
    exit 1
fi

echo
echo "Keystore: $keystore, for ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-0}. Enclaves:"
ros2 security list_enclaves "$keystore"
cat <<END

In every shell that takes part:
    export ROS_SECURITY_KEYSTORE='$keystore' ROS_SECURITY_ENABLE=true ROS_SECURITY_STRATEGY=Enforce
then start each part with its enclave, for example:
    ros2 run openvla_ros openvla_node --ros-args --enclave /openvla/node
    ROS_SECURITY_ENCLAVE_OVERRIDE=/openvla/operator ros2 service call /openvla_node/stop std_srvs/srv/Trigger
END
