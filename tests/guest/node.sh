#!/bin/bash
# Runs in a guest: genie-node over verbs, and programs that compute on it.
#
#   node.sh BUILD              node and programs in this guest
#   node.sh BUILD serve        the node alone; until the other guest says in the share that it is done
#   node.sh BUILD use          the programs alone
#
# Each run must give the bits that the same program gives without a node. Between two guests packets are lost; in one the node
# is killed while a program computes on it.
set -u
build=$1 role=${2:-both} model=/tmp/small.pt
share=/run/guest
cluster=tcp://10.77.0.1:7000
patience=600

fail() {
  echo "FAILED: $*"
  [ "$role" != use ] || echo failed >$share/verdict
  exit 1
}
await() {
  local began=$SECONDS
  until "$@"; do
    [ $((SECONDS - began)) -lt $patience ] || fail "waited $patience s for: $*"
    sleep 0.5
  done
}
# checksums JSON-FILE
checksums() { python3 -c 'import json, sys; print([o["checksum"] for o in json.load(open(sys.argv[1]))["outputs"]])' "$1"; }

start_node() {
  GENIE_LOG=info "$build/tools/genie-node" --listen tcp://10.77.0.1:7000 --transport verbs --threads 1 2>/tmp/node.log &
  node=$!
  await grep -q ready /tmp/node.log
  grep -E "ready|verbs:" /tmp/node.log
}
stop_node() {
  kill -TERM "$node"
  wait "$node" || fail "the node ended with $? ($(tail -3 /tmp/node.log))"
  grep "verbs: connected" /tmp/node.log || fail "the node was not reached over verbs"
}

compute() {
  local began=$SECONDS
  "$build/tests/guest/small_model" $model || fail "no model"
  "$build/tools/genie" run "$model" --random 4x3x32x32 --seed 3 --threads 1 --json --device cpu >/tmp/here.json || fail "genie run here"
  echo "here: $((SECONDS - began)) s"
  began=$SECONDS
  "$build/tools/genie" run "$model" --random 4x3x32x32 --seed 3 --threads 1 --repeat 2 --json --cluster $cluster >/tmp/there.json ||
    fail "genie run on the node"
  echo "on the node: $((SECONDS - began)) s"
  checksums /tmp/here.json >/dev/null || fail "no JSON: $(cat /tmp/here.json)"
  [ "$(checksums /tmp/here.json)" = "$(checksums /tmp/there.json)" ] || fail "other results: $(cat /tmp/here.json /tmp/there.json)"
  echo "the same results: $(checksums /tmp/there.json)"
}

# A program that computes on and on loses its node; it must end by itself, with the node's name.
lose_node() {
  "$build/tools/genie" run $model --random 4x3x32x32 --threads 1 --repeat 1000000 --cluster $cluster >/tmp/lost.out 2>/tmp/lost.err &
  local program=$!
  await grep -q "verbs: connected" /tmp/node.log
  kill -KILL "$node"
  wait "$program" && fail "the program did not notice that its node was killed"
  grep -q 10.77.0.1 /tmp/lost.err || fail "the error does not name the node: $(cat /tmp/lost.err)"
  cat /tmp/lost.err
}

case $role in
  both)
    start_node
    compute
    stop_node
    start_node
    lose_node
    ;;
  serve)
    start_node
    touch $share/serving
    await test -e $share/verdict
    stop_node
    grep -q passed $share/verdict
    ;;
  use)
    await test -e $share/serving
    # What goes this way over the wire is lost now and then.
    tc qdisc add dev eth0 root netem loss 1% || fail "no netem"
    compute
    echo passed >$share/verdict
    ;;
esac
