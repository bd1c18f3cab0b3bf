#!/bin/bash
# Runs in a guest: rdma-core's and perftest's own programs move bytes over Soft-RoCE. When this fails, the guest is broken and
# not the verbs transport.
#
#   perftest.sh            both ends in this guest
#   perftest.sh serve      the one end
#   perftest.sh ADDRESS    the other end
set -u

# Until the server listens; another guest may still be starting.
patiently() {
  local began=$SECONDS
  until "$@"; do
    [ $((SECONDS - began)) -lt 120 ] || return 1
    sleep 0.2
  done
}
pingpong() { timeout 120 ibv_rc_pingpong -d rxe0 -g 1 -n 200 "$@"; }
write_bw() { timeout 120 ib_write_bw -d rxe0 -x 1 -n 100 -F --tclass=0 "$@"; }

serve() {
  pingpong >/tmp/pingpong && write_bw >/tmp/write_bw
}
ask() {
  patiently pingpong "$1" && patiently write_bw "$1"
}

case ${1:-both} in
  serve) serve ;;
  both)
    serve &
    ask 10.77.0.1 && wait $!
    ;;
  *) ask "$1" ;;
esac
