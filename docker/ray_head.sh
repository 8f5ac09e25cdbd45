#!/usr/bin/env bash
# A Ray head that ends with 0 when it is asked to stop; Ray itself ends with 1 then, as it does after a failure.
#
#   ray_head.sh --dashboard-host=0.0.0.0 …
#
# Without a port of the agent's, a head that takes over 30 s to start ends.
ray start --head --block --disable-usage-stats --runtime-env-agent-port=8266 "$@" &
trap 'asked=yes; kill -TERM "$!"' TERM
wait "$!"
status=$?
if [[ ${asked-} ]]; then
  wait "$!"
  status=$?
  if ((status == 1)); then status=0; fi
fi
exit "$status"
