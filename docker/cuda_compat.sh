#!/usr/bin/env bash
# CUDA 13 needs NVIDIA's driver R580. On a host whose driver is older, the image's compatibility libraries go first in the
# path of libraries (they work on GPUs of data centres). A newer driver must not find them: its own are the right ones.
#
# As a program it starts what it is given; as BASH_ENV, where a cluster starts its own shell, it only sets the path.
compat=${CUDA_COMPAT:-/usr/local/cuda/compat}
driver=$(cat "${NVIDIA_VERSION:-/sys/module/nvidia/version}" 2>/dev/null || true)
library=$(compgen -G "$compat/libcuda.so.[0-9]*.[0-9]*" | head -n 1 || true)
if [[ $driver && $library && :${LD_LIBRARY_PATH:-}: != *:$compat:* ]]; then
  version=${library##*/libcuda.so.}
  if [[ $driver != "$version" && $(printf '%s\n%s\n' "$driver" "$version" | sort -V | head -n 1) == "$driver" ]]; then
    export LD_LIBRARY_PATH=$compat${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  fi
fi
unset compat driver library version
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then exec "$@"; fi
